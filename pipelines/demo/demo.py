"""Audit the bundled model and compare its verdicts with the ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from audit.errors import AuditError
from audit.record.ledger import Ledger
from audit.schema import VERDICT_WORDS
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.console.terminal import Console
from pipelines.runs.audit import run_audit
from pipelines.runs.summary import print_summary

LABELS = ("verbatim", "partial", "near", "ordinary", "none")
FLAGGED = ("verbatim", "partial")


def bundle() -> Path:
    """Return the folder of the bundled model and dataset.

    Raises:
        AuditError: The bundle is missing.
    """
    folder = Path(str(resources.files("pipelines.demo"))) / "bundle"
    if not (folder / "audit.yaml").is_file():
        make = "python -m benchmarks.planted all --work work/planted --out pipelines/demo/bundle"
        raise AuditError("the bundled model is missing", where=str(folder), hint=f"In a checkout: {make}")
    return folder


def run_demo(
    out: str, overrides: Sequence[str] = (), progress: Reporter | None = None, log_level: str = "warning"
) -> None:
    """Run the bundled audit, write it to `out`, and print a summary.

    Args:
        out: The folder or URI of the run.
        overrides: Settings as KEY=VALUE.
        progress: Where to show progress (default: standard error).
        log_level: The lowest level that is logged to RUN/logs.
    """
    console = Console(soft_wrap=True)
    folder = bundle()
    config, given = load_config(folder / "audit.yaml", overrides, out)
    run_audit(config, given, progress, log_level)
    console.print()
    labels = pq.read_table(folder / "labels.parquet", columns=["caption", "label"])
    summarize(Ledger(config.out).read("verdicts", columns=["caption", "verdict"]), labels, console)
    console.print("This is a toy model. Its figures show how the tool works, not how well it works on your model.")
    print_summary(config.out)


def crosstab(verdicts: pa.Table, labels: pa.Table) -> dict[str, dict[str, int]]:
    """Return the number of captions by label and verdict."""
    joined = verdicts.join(labels, "caption", join_type="inner")
    counts = joined.group_by(["label", "verdict"]).aggregate([("caption", "count")]).to_pylist()
    found = {label: dict.fromkeys(VERDICT_WORDS, 0) for label in LABELS}
    for row in counts:
        found[row["label"]][row["verdict"]] = row["caption_count"]
    return found


def summarize(verdicts: pa.Table, labels: pa.Table, console: Console) -> None:
    """Print verdicts by label, and the fractions that show whether the audit found the planted copies.

    Args:
        verdicts: The verdicts of the demo's run.
        labels: What was planted: one row per caption, with its label.
        console: Where to print.
    """
    counts = crosstab(verdicts, labels)
    shown = [word for word in VERDICT_WORDS if any(row[word] for row in counts.values())]
    table = Table("ground truth", *shown, "captions", title="verdicts against the ground truth")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, row in counts.items():
        table.add_row(label, *(f"{row[word]:,}" for word in shown), f"{sum(row.values()):,}")
    totals = {word: sum(row[word] for row in counts.values()) for word in shown}
    table.add_section()
    table.add_row("all", *(f"{totals[word]:,}" for word in shown), f"{sum(totals.values()):,}")
    console.print(table)
    console.print(f"verbatim captions found verbatim:       {_share(counts['verbatim'], ('verbatim',))}")
    console.print(f"partial captions found:                 {_share(counts['partial'], FLAGGED)}")
    console.print(f"captions never trained on but flagged:  {_share(counts['none'], FLAGGED)}")
    console.print(
        f"near and ordinary captions flagged:     {_share(counts['near'], FLAGGED)} near, "
        f"{_share(counts['ordinary'], FLAGGED)} ordinary (some really reproduce an image)"
    )


def _share(row: dict[str, int], words: Sequence[str]) -> str:
    total, hits = sum(row.values()), sum(row[word] for word in words)
    return f"{hits:,} of {total:,} ({100 * hits / total:.1f} %)" if total else "no captions"
