"""Screen captions with a few forwards on pure noise, without generating images (docs/explanation/method.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from audit.attention.probe import LayersSeen
from audit.defaults import DEFAULT_DETECTOR
from audit.detectors import screen_detectors
from audit.detectors.detector import ALL_LAYERS, ScreenDetector, Seen
from audit.errors import AuditError
from audit.models.conditioning import Conditioning
from audit.models.model import Model
from audit.models.schedule import Schedule
from audit.models.transfers import to_host
from audit.scoring.batching import Batch, Rows, finite_rows
from audit.scoring.non_finite import first_not_finite
from audit.scoring.own_forwards import BatchForwards
from audit.scoring.progress import Progress
from audit.scoring.reference_model import beside
from audit.scoring.supported import check_supported

# Shapes: B rows, S seeds, L layers, K text positions, C, H and W of the latent.

# Outputs [1, C, H, W] of the denoiser without a caption, by seed, timestep and shape of the latents.
Unconditional = dict[tuple[int, float, tuple[int, int, int]], Tensor]


@dataclass(frozen=True)
class Forward:
    """One forward that the detectors need: the denoiser at `timestep` on the initial noise.

    Attributes:
        position: Position in the schedule of the screen.
        timestep: Timestep at that position.
        layers: Number of cross-attention layers whose attention is recorded, from the first on.
        full: Whether the output is needed. If not, the forward may end after those layers.
    """

    position: int
    timestep: float
    layers: int
    full: bool


@torch.inference_mode()
def screen(
    model: Model,
    captions: Sequence[str],
    seeds: Sequence[int] = (0,),
    detectors: Sequence[str] = (DEFAULT_DETECTOR,),
    batch_size: int | None = None,
    reference: Model | None = None,
    progress: Progress | None = None,
    *,
    resolution: int | tuple[int, int] | None = None,
    unconditional: Unconditional | None = None,
) -> pa.Table:
    """Score captions from pure noise: one row per caption and seed, caption-major, as in `audit.schema.scored`.

    All detectors share one pass. If the values of a detector are not finite, its columns are null and the row has
    status "error"; the columns of the other detectors are kept. With zero terminal SNR, a detector that compares
    predicted noise at t = T uses the first timestep at which the prediction depends on the caption. What a calibration
    depends on is stored as JSON in the schema's metadata, under `crossaudit`.

    Args:
        model: The model to audit.
        captions: Captions to score.
        seeds: Seeds of the initial noise.
        detectors: Names of the detectors, by default `caption_response`.
        batch_size: Rows per forward; by default 16 on the CPU. On a GPU 64 at first, doubled while that makes rows
            faster, and halved when memory runs out.
        reference: A model that cannot have memorized the captions. Its columns are added to the table, and a
            calibration measures the difference of the two (`audit.scoring.reference_model`).
        progress: Called after each batch of rows.
        resolution: Resolution of the screen in pixels, one number or (height, width); by default the model's own. At
            half the width and height, a forward of Stable Diffusion 1.5 costs a fifth. The noise of a seed is that of a
            model loaded at this resolution, and a calibration holds for one resolution.
        unconditional: Keeps the forwards without a caption for later calls with the same model. Give each of them the
            same dictionary, which is empty at first. It saves half of the forwards of a call with one caption.

    Returns:
        A table of schema `audit.schema.scored`, with one row per caption and seed.

    Raises:
        UsageError: A detector is unknown, or captions, seeds, the batch size or the resolution are invalid.
        AuditError: The model has too few cross-attention layers for a detector, or the reference does not fit.
    """
    chosen = screen_detectors(detectors)
    model = model.at_resolution(resolution)
    rows = Rows(model, captions, seeds, batch_size)
    shared = _Pass(model, rows, chosen, {} if unconditional is None else unconditional)

    def begin(at: slice) -> Callable[[], dict[str, npt.NDArray[Any]]]:
        batch = rows.batch(at)
        seen = shared.see(batch)
        measured = [detector.measure(seen) for detector in chosen]
        arrived = to_host({name: value for part in measured for name, value in part.items()}, model.device)

        def finish() -> dict[str, npt.NDArray[Any]]:
            values = arrived()
            finite_B = np.all([finite_rows(value) for value in values.values()], axis=0)
            for row in np.flatnonzero(~finite_B).tolist():
                shared.locate(batch.one(row))
            return values

        return finish

    def told(done: int) -> None:
        if progress is not None:
            progress("screen", "rows", done, len(rows))

    found = rows.each_ahead("screen", begin, told)
    together = [detector.columns for detector in chosen]
    table = rows.table(together, found, rows.context(chosen))
    if reference is None:
        return table
    return beside(table, screen(reference, captions, seeds, detectors, batch_size, resolution=resolution))


class _Pass:
    """The forwards that the detectors of a screen share."""

    def __init__(self, model: Model, rows: Rows, chosen: Sequence[ScreenDetector], known: Unconditional) -> None:
        self._model, self._rows, self._schedule = model, rows, model.screen_schedule()
        self._earliest = self._schedule.first_informative
        self.plan = forwards(chosen, model, self._schedule)
        self._positions = {at: max(at, self._earliest) for detector in chosen for at in detector.response}
        self._unconditional = _unconditional(rows, self.plan, self._schedule, known) if len(rows) else {}

    def see(self, batch: Batch) -> Seen:
        """Run the forwards on a batch, and return what the detectors measure."""
        outputs: dict[int, Tensor] = {}
        responses: dict[int, Tensor] = {}
        own = BatchForwards(self._rows, batch, self._schedule, self._earliest, outputs, self._unconditional)
        seen = Seen(self._rows.noise_SCHW[batch.seed_B], self._alphas(), own=own)
        period = len(self._rows.seeds)
        for forward in self.plan:
            input_BCHW = self._schedule.noisy(seen.noise_BCHW, forward.position)
            output_BCHW, attn_BLK = run_forward(self._model, forward, input_BCHW, batch.conditioning, period)
            if attn_BLK is not None:
                seen.attn_BLK[forward.position] = attn_BLK
            if output_BCHW is not None:
                outputs[forward.position] = output_BCHW
                unconditional_BCHW = self._unconditional[forward.position][batch.seed_B]
                response_BCHW = self._schedule.response(output_BCHW, unconditional_BCHW, forward.position)
                responses[forward.position] = response_BCHW.masked_fill(batch.same_as_empty_B[:, None, None, None], 0)
        for at, moved in self._positions.items():
            input_BCHW = self._schedule.noisy(seen.noise_BCHW, moved)
            given = self._unconditional[moved][batch.seed_B], input_BCHW, moved
            seen.response_BCHW[at] = responses[moved]
            seen.unconditional_BCHW[at] = self._schedule.to_epsilon(*given)
            if at == 0:
                seen.unconditional_original_BCHW[at] = self._schedule.to_original(*given)
        return seen

    def locate(self, one: Batch) -> None:
        """Note where a row that is not finite stopped being finite."""
        for forward in self.plan:
            input_1CHW = self._schedule.noisy(self._rows.noise_SCHW[one.seed_B], forward.position)
            what = first_not_finite(self._rows, one, input_1CHW, forward.timestep)
            if what:
                self._rows.broken_at[one.rows.start] = f"{what}, t = {forward.timestep:g}"
                return

    def _alphas(self) -> dict[int, float]:
        """Return the cumulative alpha at each position that a detector asks for."""
        return {at: self._schedule.alpha(moved) for at, moved in self._positions.items()}


def _unconditional(rows: Rows, plan: Sequence[Forward], schedule: Schedule, known: Unconditional) -> dict[int, Tensor]:
    """Compute the outputs of the full forwards without a caption, by position: [S, C, H, W], one row per seed.

    Outputs that are known are not computed again; the others are added to those that are known.
    """
    model, found = rows.model, {}
    for forward in (forward for forward in plan if forward.full):
        input_SCHW = schedule.noisy(rows.noise_SCHW, forward.position)
        keys = [(seed, forward.timestep, model.latent_shape) for seed in rows.seeds]
        for at, key in enumerate(keys):
            if key not in known:
                known[key] = model.predict(input_SCHW[at : at + 1], forward.timestep, rows.null)
        found[forward.position] = torch.cat([known[key] for key in keys])
    return found


def forwards(detectors: Sequence[ScreenDetector], model: Model, schedule: Schedule) -> list[Forward]:
    """Plan the forwards that the detectors need together: one per timestep.

    Args:
        detectors: The detectors of the screen.
        model: The model to run.
        schedule: The schedule of the screen. No response can be measured before its first informative position.

    Returns:
        The forwards, in order of their timesteps' positions in the schedule.

    Raises:
        AuditError: A detector needs more cross-attention layers than the model has, or what it does not show.
    """
    check_supported(model, detectors)
    layers: dict[int, int] = {}
    for detector in detectors:
        for at, wanted in detector.attention.items():
            count = len(model.layers) if wanted is ALL_LAYERS else wanted
            if count > len(model.layers):
                raise AuditError(
                    f"{detector.name} needs {count} cross-attention layers; this model has {len(model.layers)}",
                    hint="Leave that detector out.",
                )
            layers[at] = max(count, layers.get(at, 0))
    full = {max(at, schedule.first_informative) for detector in detectors for at in detector.response}
    return [Forward(at, schedule.timesteps[at], layers.get(at, 0), at in full) for at in sorted(full | layers.keys())]


def run_forward(
    model: Model, forward: Forward, latents_BCHW: Tensor, conditioning: Conditioning, period: int | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Run a forward of the plan.

    Args:
        model: The model to run.
        forward: What to record.
        latents_BCHW: Input of the denoiser.
        conditioning: What the denoiser is given of the captions.
        period: Number of rows after which the latents repeat, if they do.

    Returns:
        (output [B, C, H, W] or None if the forward is not full, attention [B, L, K] or None if none is recorded).
    """
    rows = len(latents_BCHW)
    with model.sharing_prefix(rows if period is None else period, rows):
        if not forward.layers:
            return model.predict(latents_BCHW, forward.timestep, conditioning), None
        with model.probe(conditioning, forward.layers, stop=not forward.full) as probe:
            try:
                output_BCHW = model.predict(latents_BCHW, forward.timestep, conditioning)
            except LayersSeen:
                return None, probe.take()
            return (output_BCHW if forward.full else None), probe.take()
