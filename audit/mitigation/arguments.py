"""Read and change the arguments of a denoiser's forward."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from audit.attention.seam import Seam
from audit.mitigation.families import Family
from audit.mitigation.text_keys import HiddenKeys

# Shapes: B rows of the denoiser, K text positions, V of them that it is given.

HIDDEN, MASK, TEXT_IDS = "encoder_hidden_states", "encoder_attention_mask", "txt_ids"
# Those with one row per row of the batch, whatever the family.
ROWS = {"sample", "hidden_states", "timestep", "timestep_cond", "pooled_projections", "added_cond_kwargs", HIDDEN, MASK}


def by_name(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call of a denoiser by name."""
    names = tuple(inspect.signature(type(denoiser).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def halved(given: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the arguments of a guided forward for its first rows, which are the unconditional ones."""

    def first(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: first(part) for name, part in value.items()}
        return value[:rows] if isinstance(value, Tensor) and value.ndim and len(value) == 2 * rows else value

    return {name: first(value) if name in ROWS else value for name, value in given.items()}


def given_visible(
    family: Family, denoiser: Any, given: dict[str, Any], visible_BK: Tensor | None
) -> tuple[dict[str, Any], Tensor, Seam | None]:
    """Leave out the text positions that no row may see, and hide the others from the rows that may not see them.

    Args:
        family: The family of the pipeline.
        denoiser: Its denoiser.
        given: The arguments of the forward.
        visible_BK: Which positions each row may see; None for all.

    Returns:
        The arguments, the positions that are left [V], and a seam if only a seam can hide positions.
    """
    length = given[HIDDEN].shape[1]
    if visible_BK is None or bool(visible_BK.all()):
        return given, torch.arange(length), None
    positions_V = visible_BK.any(0).nonzero().flatten()
    if len(positions_V) < length:
        given = _at_positions(given, positions_V)
    visible_BV = visible_BK[:, positions_V].to(given[HIDDEN].device)
    if bool(visible_BV.all()):
        return given, positions_V, None
    if family.joint:
        hiding = HiddenKeys(family.layers(denoiser), family.text_keys(len(positions_V)), visible_BV)
        return given, positions_V, hiding
    own = given.get(MASK)
    return given | {MASK: visible_BV if own is None else own * visible_BV}, positions_V, None


def _at_positions(given: dict[str, Any], positions_V: Tensor) -> dict[str, Any]:
    """Return the arguments with some of the text positions alone."""
    changed = {}
    for name in (HIDDEN, MASK):
        if given.get(name) is not None:
            changed[name] = given[name][:, positions_V.to(given[name].device)]
    if given.get(TEXT_IDS) is not None:
        changed[TEXT_IDS] = given[TEXT_IDS][positions_V.to(given[TEXT_IDS].device)]
    return given | changed
