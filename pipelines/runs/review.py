"""Prepare the review of a finished run: draw its pairs once, and load their pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pyarrow as pa

from audit import schema
from audit.errors import AuditError, UsageError, first_line
from audit.record.ledger import Ledger
from pipelines.configuration.config import Config
from pipelines.engine.manifest import Manifest
from pipelines.engine.owner import Owner
from pipelines.review.answers import REVIEWS, Answers
from pipelines.review.pairs import PAIRS, POSITIVE_SHARE, altered, cases, look_alikes, mismatches, pair
from pipelines.review.pictures import Pictures, pictures
from pipelines.review.source_images import read_images
from pipelines.runs.finished_run import finished

PART = "00000"
# Without an error on 60 decoys, the upper bound of a rater's false-positive rate is 4.9 % (95 % confidence).
CASES, DECOYS = 500, 60


@dataclass(frozen=True)
class Review:
    """What raters are shown, and where their answers go.

    Attributes:
        ledger: The run.
        pairs: The pairs, of schema REVIEW_PAIRS, without their pictures.
        pictures: The pictures of each pair.
        answers: The answers.
        notes: What the reader must know about the decoys.
    """

    ledger: Ledger
    pairs: pa.Table
    pictures: dict[str, Pictures]
    answers: Answers
    notes: list[str] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """The number of pairs by type."""
        return Counter(self.pairs["pair_type"].to_pylist())


def open_review(uri: str, most_cases: int | None = None, decoys: int | None = None) -> Review:
    """Open the review of a run. The first call draws the pairs and stores them; later calls continue with these.

    Args:
        uri: The path or URI of a finished run.
        most_cases: Number of confirmed captions to judge, at most (default: CASES).
        decoys: Number of decoys that are not copies (default: DECOYS), with a third as many that are.

    Raises:
        UsageError: A number is given for a review whose pairs are drawn, or is too small.
        AuditError: The run is not finished, has nothing to review, or has lost its pictures.
    """
    ledger, manifest, config = finished(uri)
    notes: list[str] = []
    if PART in ledger.parts(PAIRS):
        if (most_cases, decoys) != (None, None):
            hint = f"Omit --cases and --decoys. To begin anew, delete the folders {PAIRS} and {REVIEWS} of the run."
            raise UsageError("the pairs of this review are drawn already", where=ledger.uri, hint=hint)
        pairs = ledger.read(PAIRS)
        shown = pictures(ledger, manifest.data, pairs)
    else:
        if (most_cases is not None and most_cases < 1) or (decoys is not None and decoys < 1):
            raise UsageError("--cases and --decoys must be at least 1", hint="Leave them out for the defaults.")
        with Owner(ledger):
            ledger, manifest, config = finished(uri)  # another process may have changed it before we became the owner
            pairs = _draw(ledger, manifest, config, most_cases or CASES, decoys or DECOYS, notes)
            shown = pictures(ledger, manifest.data, pairs)
            ledger.write(PAIRS, PART, pairs)
            manifest.part(PAIRS, PART, len(pairs))
            manifest.write()
    return Review(ledger, pairs.drop_columns("image"), shown, Answers(ledger, pairs), notes)


def _draw(
    ledger: Ledger, manifest: Manifest, config: Config, most_cases: int, decoys: int, notes: list[str]
) -> pa.Table:
    """Return the pairs of a new review (schema REVIEW_PAIRS)."""
    chosen = cases(ledger, most_cases)
    negative = _of_controls(ledger, manifest, config, decoys, notes)
    negative += mismatches(ledger, chosen, decoys - len(negative))
    if len(negative) < decoys:
        notes.append(f"only {len(negative):,} decoys that are not copies could be made, instead of {decoys:,}")
    positive = altered(ledger, -(-decoys // POSITIVE_SHARE))
    return pa.Table.from_pylist([*chosen, *negative, *positive], schema=schema.REVIEW_PAIRS)


def _of_controls(ledger: Ledger, manifest: Manifest, config: Config, most: int, notes: list[str]) -> list[dict]:
    """Return the decoys of control captions; none if the training images or the generations are out of reach."""
    embedder = config.confirm.embedders[0]
    kept = _kept(ledger)
    # Some images may have changed or be unreadable: look at a few more.
    found = look_alikes(ledger, embedder, manifest.data.deciding_thresholds, 2 * most)
    found = [each for each in found if (each.caption_id, each.seed) in kept]
    if not found:
        notes.append("there are no control decoys: the run has no generations of control captions")
        return []
    try:
        images = read_images(ledger, config, {each.image_id: each.orientation for each in found})
    except (AuditError, OSError) as error:
        notes.append(f"there are no control decoys: the training images cannot be read: {first_line(error)}")
        return []
    there = [each for each in found if each.image_id in images][:most]
    return [pair("control", each.image_id, each.caption_id, each.seed, images[each.image_id]) for each in there]


def _kept(ledger: Ledger) -> set[tuple[str, int]]:
    """Return (caption_id, seed) of the control captions whose generation was kept."""
    found: set[tuple[str, int]] = set()
    for part in ledger.parts("generations"):
        if not part.startswith("control-"):
            continue
        rows = ledger.read("generations", part, ["caption_id", "seed", "image"])
        there = rows.filter(rows["image"].is_valid()).select(["caption_id", "seed"])
        found |= set(zip(there["caption_id"].to_pylist(), there["seed"].to_pylist(), strict=True))
    return found
