"""Count what remains from step to step: all captions, screened, generated, confirmed; and the time of each step."""

from __future__ import annotations

from collections.abc import Sequence

from reports.record.model import FunnelStep, Step, VerdictCount
from reports.record.source import Source

STAGES: dict[Step, tuple[str, ...]] = {
    "captions": ("ingest", "controls"),
    "screened": ("calibrate", "screen", "select", "perturb"),
    "generated": ("generate",),
    "confirmed": ("embed", "reuse", "search", "cluster", "confirm", "judge"),
}


def funnel(source: Source, verdicts: Sequence[VerdictCount], confirmed: int) -> list[FunnelStep]:
    """Return the four steps with their captions, and the time of the stages that belong to each.

    Args:
        source: The run.
        verdicts: The number of captions with each verdict.
        confirmed: The number of confirmed captions.
    """
    count = {row.verdict: row.captions for row in verdicts}
    total = sum(count.values())
    [screened] = source.rows("select count(*) as captions from scores where score is not null")
    remaining = {
        "captions": total,
        "screened": screened["captions"],
        "generated": total - count.get("not_selected", 0),
        "confirmed": confirmed,
    }
    stages = source.manifest.stages
    seconds = {step: sum(stages[name].seconds for name in names if name in stages) for step, names in STAGES.items()}
    return [FunnelStep(step=step, captions=remaining[step], seconds=seconds[step]) for step in STAGES]
