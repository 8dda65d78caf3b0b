"""Decide whether a finished run passes: by captions at high risk, by the claim about copies, and missing verdicts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from audit.errors import UsageError
from audit.record.manifest import RunManifest
from audit.statistics.bounds import UNDETERMINED
from audit.statistics.claims import MILLION
from reports.finished import finished_manifest
from reports.record.captions import verdict_counts
from reports.record.source import Source
from reports.views import connect
from reports.waivers import Waiver, waived_captions


@dataclass(frozen=True)
class Rule:
    """Hold the outcome of one rule.

    Attributes:
        name: What is counted.
        figure: The figure of the run; None if the run has none.
        limit: The largest figure that passes; None if any passes.
        passed: Whether the run passes.
        note: What the reader should know about the figure.
    """

    name: str
    figure: float | None
    limit: float | None
    passed: bool
    note: str = ""


@dataclass(frozen=True)
class Gate:
    """Hold the outcome of a gate.

    Attributes:
        rules: The outcome of each rule.
        waived: The confirmed captions that waivers cover: caption_id, caption, verdict, risk, and from the waiver
            covers, reason, owner and expires.
        unused: The waivers that cover no confirmed caption.
    """

    rules: list[Rule]
    waived: list[dict[str, Any]]
    unused: list[Waiver]

    @property
    def passed(self) -> bool:
        """Whether the run passes every rule."""
        return all(rule.passed for rule in self.rules)


def gate(
    run: str | Path,
    max_high: int = 0,
    max_per_million: float | None = None,
    waivers: Sequence[Waiver] = (),
    allowed: Collection[str] = (),
) -> Gate:
    """Compare a finished run with limits.

    Args:
        run: The run.
        max_high: The largest number of captions at high risk that passes. Waived captions are not counted.
        max_per_million: The largest upper end of the claim about copies, in captions per million (default: the
            claim is not compared). Waivers do not change a claim.
        waivers: Waivers that hold today.
        allowed: Verdicts of UNDETERMINED that captions may have.

    Returns:
        The outcome of each rule, and the waived captions.

    Raises:
        UsageError: No image was compared, so that no caption could be confirmed.
        AuditError: The run is not finished, or is none.
    """
    manifest = finished_manifest(run)
    if not manifest.thresholds:
        what = "the run compared no training images, so it cannot confirm anything"
        raise UsageError(what, where=str(run), hint="Set `images` in audit.yaml, and audit again.")
    with connect(run) as connection:
        source = Source(connection, manifest, str(run))
        waiver_of = waived_captions(connection, waivers)
        high = source.rows("select caption_id from verdicts where risk = 'high'")
        counts = {row.verdict: row.captions for row in verdict_counts(source)}
        waived = _waived(source, waiver_of)
    covered = sum(row["caption_id"] in waiver_of for row in high)
    rules = [_counted("captions at high risk", len(high) - covered, max_high, _more(covered))]
    if max_per_million is not None:
        rules.append(_bounded(_upper_end(manifest), max_per_million))
    for word in UNDETERMINED:
        found = counts.get(word, 0)
        limit = None if word in allowed else 0
        rules.append(_counted(f"captions with the verdict {word}", found, limit))
    used = {id(waiver) for waiver in waiver_of.values()}
    return Gate(rules, waived, [waiver for waiver in waivers if id(waiver) not in used])


def _upper_end(manifest: RunManifest) -> float | None:
    """Return the most captions per million that may be copies, or None if nothing is claimed about all captions."""
    found = [claim for claim in manifest.claims.claims if (claim.estimand, claim.end) == ("copies", "at_most")]
    return MILLION * found[0].value / max(1, found[0].of) if found else None


def _counted(name: str, figure: int, limit: int | None, note: str = "") -> Rule:
    return Rule(name, figure, limit, limit is None or figure <= limit, note)


def _more(waived: int) -> str:
    return f"{waived:,} more {'is' if waived == 1 else 'are'} waived" if waived else ""


def _bounded(figure: float | None, limit: float) -> Rule:
    name = "captions per million that copy a training image, at most"
    if figure is None:
        return Rule(name, None, limit, False, "the run makes no such claim: it drew no audit sample")
    return Rule(name, figure, limit, figure <= limit)


def _waived(source: Source, waiver_of: dict[str, Waiver]) -> list[dict[str, Any]]:
    sql = """select caption_id, caption, verdict, risk from verdicts where caption_id in $ids
             order by list_position(['high', 'medium', 'low'], risk), caption_id"""
    found = []
    for row in source.rows(sql, ids=list(waiver_of)) if waiver_of else []:
        waiver = waiver_of[row["caption_id"]]
        said = {"covers": waiver.covers, "reason": waiver.grounds, "owner": waiver.owner}
        found.append(row | said | {"expires": waiver.expires.isoformat()})
    return found
