"""Count what remains from step to step: all captions, screened, generated, confirmed; and the time of each step."""

from __future__ import annotations

from typing import Literal

from reports.record.part import Part
from reports.record.source import Source

Step = Literal["captions", "screened", "generated", "confirmed"]
STAGES: dict[Step, tuple[str, ...]] = {
    "captions": ("ingest", "controls"),
    "screened": ("calibrate", "screen", "select", "perturb"),
    "generated": ("generate",),
    "confirmed": ("embed", "reuse", "search", "cluster", "confirm", "judge"),
}


class FunnelStep(Part):
    """A step from all captions to the confirmed ones: what remains, and the time that the step took."""

    step: Step
    captions: int
    seconds: float


def funnel(source: Source) -> list[FunnelStep]:
    """Return the steps with their captions, as the view `funnel` counts them, and the time of the stages of each."""
    remaining = {row["step"]: row["captions"] for row in source.rows("select step, captions from funnel")}
    stages = source.manifest.stages
    seconds = {step: sum(stages[name].seconds for name in names if name in stages) for step, names in STAGES.items()}
    return [FunnelStep(step=step, captions=remaining[step], seconds=seconds[step]) for step in STAGES]
