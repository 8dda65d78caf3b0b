"""Write the page that compares two runs: what appeared, what went and what stayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from audit.errors import AuditError
from audit.record.filesystem import write_local
from audit.record.manifest import RunManifest
from audit.statistics.paired import LEVEL
from reports.pages import environment
from reports.pictures import picture
from reports.purged import note
from reports.stored_run import locate
from reports.verdict_words import COLOURS
from reports.views import connect

CHANGES = ("appeared", "went", "stayed", "neither")
# One row per caption that both runs generated. Columns _a and _b are those of the first and the second run.
PAIRS = pa.schema(
    [
        ("caption_id", pa.string()),
        ("caption", pa.string()),
        ("row_count", pa.int64()),
        ("cluster", pa.int64()),  # captions that are near-identical, or that copy the same image in one of the runs
        ("change", pa.string()),  # appeared: only the second run copies; went: only the first; stayed: both; neither
        ("image_id", pa.string()),  # the training image that is copied, in the second run if both copy
        ("seed_a", pa.int64()),  # the generation to show; that of the copy, if there is one
        ("seed_b", pa.int64()),
        ("similarity", pa.float64()),  # of the copy to the image
        ("copy_type", pa.string()),
    ]
)
MAX_IMAGE_BYTES = 15_000_000  # all images of a page together
FEWEST = 5  # five coins show heads in a row with probability 0.031
SHOWN = {"appeared": 40, "went": 40, "stayed": 20}


@dataclass(frozen=True)
class Comparison:
    """Hold the comparison of two runs.

    Attributes:
        runs: The first and the second run.
        captions: Captions of either run; they are the same.
        pairs: One row per caption that both runs generated (PAIRS).
        left_out: Why the other captions are no pairs, and how many they are.
        thresholds: For each kind, the threshold that is used, and those of the two runs.
        differences: What differs between the runs: its name, and its value in both.
        protocol: What is the same in both: seeds, steps, guidance and embedder.
        test: The figures of `audit.statistics.paired.PairedTest`.
    """

    runs: tuple[str, str]
    captions: int
    pairs: pa.Table
    left_out: dict[str, int]
    thresholds: dict[str, dict[str, float | None]]
    differences: list[tuple[str, str, str]]
    protocol: dict[str, Any]
    test: dict[str, Any]

    @property
    def counts(self) -> dict[str, int]:
        """The number of pairs with each change."""
        return {word: int(pc.sum(pc.equal(self.pairs["change"], word)).as_py() or 0) for word in CHANGES}

    @property
    def conclusion(self) -> str:
        """The outcome of the test in a sentence."""
        test = self.test
        p = f"p = {_p(test['clustered_p_more'])}, one-sided, exact, with {test['clusters']:,} families as units"
        if test["worse"]:
            return f"The second run is worse: it copies more captions ({p})."
        if test["smallest_p"] > LEVEL:
            return (
                f"Too few families changed to tell the runs apart ({p}): at the 5 % level, at least "
                f"{FEWEST} families must change. This does not show that the runs are equal."
            )
        return f"The second run is not shown to be worse at the 5 % level ({p}). This does not show that it is not."


def _p(value: float) -> str:
    return f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def write(comparison: Comparison, path: Path) -> None:
    """Write the page to a local file. Raises AuditError if a run cannot be read or the file cannot be written."""
    page = render(comparison)
    try:
        write_local(path, page.encode())
    except OSError as error:
        raise AuditError(f"cannot be written: {error}", where=str(path)) from error


def render(comparison: Comparison) -> str:
    """Return the page as HTML that runs no script, loads nothing from elsewhere and escapes every caption."""
    manifests = [locate(run).manifest() for run in comparison.runs]
    cases = {word: _cases(comparison.pairs, word) for word in SHOWN}
    everything = [case for word in SHOWN for case in cases[word]]
    for run, letter in zip(comparison.runs, "ab", strict=True):
        _add_pictures(run, everything, letter)
    return (
        environment()
        .get_template("comparison.html.j2")
        .render(
            comparison=comparison,
            counts=comparison.counts,
            manifests=manifests,
            names=[_name(manifest) for manifest in manifests],
            removed=[note(manifest) for manifest in manifests],
            cases=_fitting(cases),
            colours=COLOURS,
            words=COLOURS,
        )
    )


def _name(manifest: RunManifest) -> str:
    model = manifest.resolved.get("model") or {}
    return str(model.get("path", "a text-to-image model"))


def _cases(pairs: pa.Table, change: str) -> list[dict[str, Any]]:
    """Return the pairs with a change that the page shows: the most repeated captions first, one per cluster first."""
    rows = pairs.filter(pc.equal(pairs["change"], change)).to_pylist()
    rows.sort(key=lambda row: (-row["row_count"], -(row["similarity"] or 0), row["caption_id"]))
    place: dict[int, int] = {}
    for row in rows:
        row["place"] = place[row["cluster"]] = place.get(row["cluster"], -1) + 1
    rows.sort(key=lambda row: row["place"])
    return rows[: SHOWN[change]]


def _add_pictures(run: str, cases: Sequence[dict[str, Any]], letter: str) -> None:
    """Add the generation of a run to each case, and the training image if the run keeps it as evidence."""
    wanted = pa.table(
        {
            "caption_id": pa.array([case["caption_id"] for case in cases], pa.string()),
            "seed": pa.array([case[f"seed_{letter}"] for case in cases], pa.int64()),
        }
    )
    images = [case["image_id"] for case in cases]
    with connect(run) as connection:
        try:
            connection.register("wanted", wanted)
            sql = """select caption_id, any_value(image) from generations join wanted using (caption_id, seed)
                     where purpose = 'discover' group by all"""
            generation_of = dict(connection.execute(sql).fetchall())
            sql = "select image_id, any_value(image) from evidence where image_id in $images group by all"
            training_of = dict(connection.execute(sql, {"images": images}).fetchall()) if images else {}
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise AuditError(f"a table cannot be read: {str(error).strip()}", where=run) from error
    for case in cases:
        case[f"generation_{letter}"] = generation_of.get(case["caption_id"])
        case["training"] = training_of.get(case["image_id"]) or case.get("training")


def _fitting(cases: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return the cases whose images fit into MAX_IMAGE_BYTES together, with their images as data URIs."""
    kept: dict[str, list[dict[str, Any]]] = {word: [] for word in cases}
    used = 0
    for word, case in ((word, case) for word, found in cases.items() for case in found):
        for name in ("generation_a", "generation_b", "training"):
            case[name] = picture(case[name])
            used += len(case[name].uri) if case[name] else 0
        if used <= MAX_IMAGE_BYTES:
            kept[word].append(case)
    return kept
