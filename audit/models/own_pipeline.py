"""Run a diffusers pipeline by its own call, and choose and see what passes between it and its parts.

Every pipeline encodes captions by `encode_prompt`, draws latents by `prepare_latents`, and leaves noise levels and
steps to its scheduler. While these are replaced, everything between them is the pipeline's own code: how the network is
given the time, what it is given beside the text, and what becomes of its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from audit.errors import UsageError, first_line
from audit.models.conditioning import Conditioning, Rows
from audit.models.model import AS_GIVEN
from audit.models.pipeline_parts import unsupported

# Shapes: B rows; C, H and W of the latent.


class Ended(Exception):  # noqa: N818  (not an error: the call has shown what it was made for)
    """Ends a call of a pipeline.

    Attributes:
        found: What the call showed.
    """

    def __init__(self, found: Any = None) -> None:
        super().__init__()
        self.found = found


@dataclass(frozen=True, eq=False)
class Encoded(Conditioning):
    """What `encode_prompt` returned for each caption by itself. Captions may differ in the shapes of their tensors.

    Attributes:
        rows: For each caption, the results of the calls that the pipeline made.
    """

    rows: Sequence[Sequence[Any]] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Rows) -> Encoded:
        listed = range(len(self.rows))[rows] if isinstance(rows, slice) else rows.tolist()
        return Encoded({}, None if self.tokens is None else self.tokens[rows], [self.rows[row] for row in listed])

    def expand(self, size: int) -> Encoded:
        """Repeat a single row."""
        return self[torch.zeros(size, dtype=torch.long)]

    def isfinite(self) -> bool:
        """Tell whether all values are finite."""
        return all(bool(leaf.isfinite().all()) for leaf in tree_leaves(self.rows) if isinstance(leaf, Tensor))


@contextmanager
def replaced(pipeline: Any, **methods: Callable[..., Any]) -> Iterator[None]:
    """Replace methods of a pipeline inside the `with` block."""
    vars(pipeline).update(methods)
    try:
        yield
    finally:
        for name in methods:
            del vars(pipeline)[name]


def ending(call: Callable[[], object]) -> Any:
    """Make a call that ends early, and return what it showed. Raises RuntimeError if it does not."""
    try:
        call()
    except Ended as end:
        return end.found
    raise RuntimeError("the pipeline did not call the part that was to end it")


class _AtOneLevel:
    """What a scheduler does instead of sampling: it leaves latents as they are, and its first step ends the call."""

    init_noise_sigma = 1.0
    held: Sequence[float]

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: Any = None,
        timesteps: Any = None,
        mu: float | None = None,
    ) -> None:
        self.num_inference_steps = len(self.held)
        self.timesteps = torch.tensor(self.held, device=device)
        self.sigmas = torch.zeros(len(self.held) + 1, device=device)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        return sample

    def step(self, model_output: Tensor, *_: Any, **__: Any) -> Any:
        raise Ended(model_output)


def held(scheduler: Any, timesteps: Sequence[float]) -> Any:
    """Turn a scheduler into one that holds latents at one noise level and ends the call with the network's output.

    Args:
        scheduler: A scheduler of the pipeline's class, at whose configuration the pipeline may look.
        timesteps: One time, or none to skip the network.
    """
    vars(scheduler).pop("init_noise_sigma", None)
    scheduler.__class__ = type("Held", (_AtOneLevel, type(scheduler)), {})
    scheduler.held = list(timesteps)
    return scheduler


def observed(scheduler: Any, observe: Callable[[int, Tensor, Tensor], None]) -> Any:
    """Turn a scheduler into one that calls `observe` with the number of each step and the latents before and after."""
    take, taken = scheduler.step, 0

    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal taken
        found = take(model_output, timestep, sample, *args, **kwargs)
        observe(taken, sample, found[0] if isinstance(found, tuple) else found.prev_sample)
        taken += 1
        return found

    step.__signature__ = signature(take)  # type: ignore[attr-defined]  # pipelines look at it
    scheduler.step = step
    return scheduler


@contextmanager
def rows_given(network: nn.Module) -> Iterator[list[int]]:
    """Count the rows of each call of a network inside the `with` block."""
    counts: list[int] = []

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        counts.append(len(next(iter((*args, *kwargs.values())))))

    handle = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield counts
    finally:
        handle.remove()


def fixed(pipeline: Any) -> dict[str, Any]:
    """Return the arguments with which each call of a pipeline is made."""
    taken = signature(pipeline.__call__).parameters
    return {"output_type": "latent"} | {name: value for name, value in AS_GIVEN.items() if name in taken}


def latent_shape(pipeline: Any, size: tuple[int, int] | None, where: str) -> tuple[int, int, int]:
    """Return the shape of the latents that a pipeline draws for a height and width in pixels, or by default.

    Args:
        pipeline: The pipeline.
        size: Height and width in pixels; None for the pipeline's default.
        where: The model or the setting, for errors.

    Raises:
        AuditError: The pipeline does not run, or the latents of one image are not [1, C, H, W].
        UsageError: It does not make images of this size.
    """
    prepare = pipeline.prepare_latents

    def end(*args: Any, **kwargs: Any) -> Any:
        given = signature(prepare).bind(*args, **kwargs).arguments
        found = prepare(*args, **kwargs)
        raise Ended((found[0] if isinstance(found, tuple) else found, given.get("height"), given.get("width")))

    asked = dict(zip(("height", "width"), size or (None, None), strict=True))
    call = {"prompt": "", "guidance_scale": 0.0, "num_inference_steps": 2} | asked | fixed(pipeline)
    try:
        with torch.inference_mode(), replaced(pipeline, prepare_latents=end):
            latents, height, width = ending(lambda: pipeline(**call))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # pipelines do not document what they raise
        if size is not None and isinstance(error, ValueError):
            hint = "Give a height and a width that the pipeline accepts."
            raise UsageError(f"{type(pipeline).__name__}: {first_line(error)}", where=where, hint=hint) from error
        raise unsupported(type(pipeline), f"does not run: {first_line(error)}", where) from error
    scale = int(pipeline.vae_scale_factor)
    shape = list(latents.shape)
    if len(shape) != 4 or [scale * each for each in shape[2:]] != [height, width]:
        what = f"has latents of the shape {shape} for an image of {height} x {width} pixels; "
        what += f"supported are [1, C, {height // scale}, {width // scale}]"
        raise unsupported(type(pipeline), what, where)
    return shape[1], shape[2], shape[3]
