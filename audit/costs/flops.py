"""Count the FLOPs of a screen, a generation and an embedding by running the same code on `meta` tensors.

One multiply-add is two FLOPs. Convolutions, matrix products and attention are counted, with torch's own formulas. Norms
and activations are not counted; they cost a percent or less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch

from audit.costs.flop_counter import FlopCounter
from audit.costs.meta_networks import META, EmbedderOutline
from audit.detectors import run_detectors, screen_detectors
from audit.detectors.detector import Seen
from audit.models.model import Model
from audit.scoring.batching import Batch, Rows
from audit.scoring.generation import decode, denoise
from audit.scoring.own_forwards import BatchForwards
from audit.scoring.screening import Forward, forwards, run_forward
from audit.scoring.supported import check_supported

Arguments = ParamSpec("Arguments")
Cost = TypeVar("Cost")

# Shapes: B rows (one), L layers, K text positions; C, H and W of the latent, h and w of the image.


@dataclass(frozen=True)
class ScreenCost:
    """FLOPs of a screen.

    Attributes:
        text: FLOPs per caption, for the text encoder.
        row: FLOPs per caption and seed, for the conditional forwards without what `shared` counts.
        shared: FLOPs per batch and seed, for what comes before the first cross-attention (0.3 % of a row of Stable
            Diffusion 1.5 in batches of 16).
        unconditional: FLOPs per seed and call, for the unconditional forwards.
        forwards: Number of conditional forwards, including those that end early.
        values: Number of values per row in each column.
    """

    text: int
    row: int
    shared: int
    unconditional: int
    forwards: int
    values: dict[str, int]


@dataclass(frozen=True)
class GenerationCost:
    """FLOPs of a generation.

    Attributes:
        text: FLOPs per caption, for the text encoder.
        step: FLOPs per denoising step, per caption and seed.
        decode: FLOPs of the decoder, per caption and seed.
        size: Height and width of the image.
    """

    text: int
    step: int
    decode: int
    size: tuple[int, int]

    def of(self, steps: int) -> int:
        """Return the FLOPs of one generation with that number of steps, without its text."""
        return steps * self.step + self.decode


def count(work: Callable[[], object]) -> int:
    """Count the FLOPs of what `work` does with torch."""
    with torch.no_grad(), FlopCounter() as counter:
        work()
    return counter.total


def _once_per_architecture(
    function: Callable[Concatenate[Model, Arguments], Cost],
) -> Callable[Concatenate[Model, Arguments], Cost]:
    """Keep the costs of a model for others of its architecture, such as the reference model: counting takes seconds."""
    known: dict[str, Cost] = {}

    @wraps(function)
    def cost(model: Model, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Cost:
        texts = model.tokenize([""]).ids_BK.shape
        key = json.dumps(
            [model.architecture, model.latent_shape, texts, model.scheduler_config, args, kwargs],
            default=str,
            sort_keys=True,
        )
        if key not in known:
            known[key] = function(model, *args, **kwargs)
        return known[key]

    return cost


@_once_per_architecture
def screen_cost(model: Model, detectors: Sequence[str]) -> ScreenCost:
    """Count the FLOPs of `audit.screen` with these detectors. Raises AuditError as `audit.screen` does."""
    chosen = screen_detectors(detectors)
    rows, batch = _one(model)
    schedule = model.screen_schedule()
    plan = forwards(chosen, model, schedule)
    responses = {at for detector in chosen for at in detector.response}
    flops_of: dict[tuple[int, bool, int], int] = {}  # the timestep does not matter

    def cost(layers: int, full: bool, captions: int) -> int:
        if (layers, full, captions) not in flops_of:
            forward = Forward(0, 0, layers, full)
            noise_BCHW, conditioning = rows.noise_SCHW.expand(captions, -1, -1, -1), batch.conditioning.expand(captions)
            flops_of[layers, full, captions] = count(lambda: run_forward(model, forward, noise_BCHW, conditioning, 1))
        return flops_of[layers, full, captions]

    def together(captions: int) -> int:
        return sum(cost(forward.layers, forward.full, captions) for forward in plan)

    earliest = schedule.first_informative
    given = {earliest: rows.noise_SCHW}
    attn_BLK = torch.empty(1, len(model.layers), model.tokenize([""]).mask_BK.shape[1], device=META)
    seen = Seen(
        rows.noise_SCHW,
        dict.fromkeys(responses, 0.5),
        {forward.position: attn_BLK[:, : forward.layers] for forward in plan},
        dict.fromkeys(responses, rows.noise_SCHW),
        dict.fromkeys(responses, rows.noise_SCHW),
        {0: rows.noise_SCHW.double()},
        BatchForwards(rows, batch, schedule, earliest, given, given),
    )
    measured: list[dict[str, torch.Tensor]] = []
    with torch.inference_mode():
        own = count(lambda: measured.extend(detector.measure(seen) for detector in chosen))
    return ScreenCost(
        text=count(lambda: model.encode([""])),
        row=own + together(2) - together(1),
        shared=2 * together(1) - together(2),
        unconditional=sum(cost(0, True, 1) for forward in plan if forward.full),
        forwards=len(plan) + sum(detector.own_forwards for detector in chosen),
        values={name: value[0].numel() for part in measured for name, value in part.items()},
    )


@_once_per_architecture
def generation_cost(model: Model, guidance_scale: float, detectors: Sequence[str] = ()) -> GenerationCost:
    """Count the FLOPs of `audit.generate`, without the one forward in which `bright_ending` reads an attention map.

    Args:
        model: A model on the `meta` device.
        guidance_scale: Classifier-free guidance scale.
        detectors: Names of trajectory detectors to run along.

    Returns:
        The FLOPs of the text encoder, of a denoising step and of the decoder, and the size of the image.

    Raises:
        AuditError: A detector reads what the model does not show.
    """
    rows, batch = _one(model)
    chosen = run_detectors(detectors)
    check_supported(model, chosen)
    followers = [detector(batch.prompt_tokens_B, 3) for detector in chosen]
    sample = torch.empty(1, *model.latent_shape, device=META)
    decoded: list[torch.Tensor] = []

    def first(steps: int) -> int:
        return count(lambda: denoise(rows, batch, 3, guidance_scale, followers, until=steps))

    decoding = count(lambda: decoded.append(decode(model, sample)))
    height, width = decoded[0].shape[2:]
    return GenerationCost(
        text=count(lambda: model.encode([""])),
        step=first(2) - first(1) if model.OWN_LOOP else first(1),  # the call of a pipeline encodes its texts first
        decode=decoding,
        size=(height, width),
    )


def embedding_cost(embedder: EmbedderOutline) -> int:
    """Count the FLOPs of embedding one image."""
    return count(lambda: embedder.encode(torch.empty(1, *embedder.shape, device=META)))


def _one(model: Model) -> tuple[Rows, Batch]:
    """Return the rows of one caption and seed, and their batch, with the texts already encoded."""
    rows = Rows(model, [""], (0,), None)
    with torch.no_grad(), FlopCounter():  # nothing is counted, but on `meta` it is faster
        _ = rows.null
        return rows, rows.batch(slice(0, 1))
