"""The command `crossaudit evaluate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit.defaults import DEFAULT_DETECTOR
from pipelines.commands.options import Json, RunDir, Verbose

if TYPE_CHECKING:
    from audit.statistics.detection_rates import Estimate
    from pipelines.runs.evaluate import Evaluation

_FIGURES = ("auroc", "tpr_at_1_percent", "tpr_at_01_percent")


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = f"Example: crossaudit evaluate run --labels memorized.jsonl --detector {DEFAULT_DETECTOR}"
    app.command(rich_help_panel=panel, epilog=example)(evaluate)


def evaluate(
    run: RunDir,
    labels: Annotated[
        str, typer.Option(metavar="FILE", help="Captions whose truth is known: .txt, .jsonl, .csv or .parquet.")
    ],
    negatives: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Captions that are not memorized (default: those with the label none; if there are none, all captions "
            "without a label).",
        ),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A detector to measure (default: all that the run has). Repeatable."),
    ] = None,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Measure detectors against captions whose truth is known: AUROC, and TPR at 1 % and 0.1 % FPR.

    Reads the label files of the field. Each label is compared with the negatives
    on its own. Intervals are at 95 %, from a bootstrap over groups of captions.
    A figure that the negatives are too few for is left out.

    The JSON document has the keys run, captions, files, matched (captions per
    label), unmatched, without_label, negatives and detectors (detector, label,
    positives, negatives, figures with intervals, and the reason for what is null).
    """
    from pipelines.console.progress import waiting
    from pipelines.runs.evaluate import evaluate as measure

    with waiting("measuring"):
        found = measure(run, labels, negatives, detector)
    if json_:
        typer.echo(json.dumps({"run": run} | _document(found), indent=2))
    else:
        _print(found)


def _document(found: Evaluation) -> dict[str, Any]:
    content = asdict(found)
    for file in content["files"].values():
        file["captions"] = len(file.pop("label_of"))
    detectors = []
    for measured in content.pop("measured"):
        positives, negatives = measured.pop("without_score")
        rates = measured.pop("rates") or dict.fromkeys(_FIGURES)
        lacking = {"positives_without_score": positives, "negatives_without_score": negatives}
        detectors.append(measured | lacking | rates)
    return content | {"detectors": detectors}


def _print(found: Evaluation) -> None:
    from rich.table import Table
    from rich.text import Text

    from pipelines.console.terminal import Console

    console = Console(soft_wrap=True)
    for line in _counts(found):
        console.print(Text(line))
    table = Table("detector", "label", "positives", "negatives", "AUROC", "TPR at 1 % FPR", "at 0.1 %", box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    notes: dict[str, list[str]] = {}  # what the notes are about
    for measured in found.measured:
        rates = measured.rates
        if rates is None:
            table.add_row(measured.detector, measured.label, "", "", "", "", "")
            notes.setdefault(measured.reason, []).append(measured.detector)
            continue
        figures = [getattr(rates, name) for name in _FIGURES]
        shown = [_shown(figure) for figure in figures]
        table.add_row(measured.detector, measured.label, f"{rates.positives:,}", f"{rates.negatives:,}", *shown)
        for reason in filter(None, (figure.reason for figure in figures)):
            notes.setdefault(reason, []).append(measured.label)
        if any(measured.without_score):
            ours, theirs = measured.without_score
            lacking = f"no score for {ours:,} captions of the label and {theirs:,} negatives"
            notes.setdefault(lacking, []).append(f"{measured.detector}, {measured.label}")
    if not console.is_terminal:
        console.width = max(console.width, console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table)
    for note, about in notes.items():
        console.print(Text(f"{', '.join(dict.fromkeys(about))}: {note}"))


def _counts(found: Evaluation) -> list[str]:
    """Return what became of every row of the files, and of every caption of the run."""
    lines = []
    for name, file in found.files.items():
        aside = {
            "without a caption": file.empty,
            "without a label": file.unlabelled,
            "repeated": file.repeated,
            "captions with several labels, of which the worst counts": file.conflicting,
        }
        said = "".join(f"; {number:,} {what}" for what, number in aside.items() if number)
        lines.append(f"{name}: {file.rows:,} rows, {len(file.label_of):,} captions{said}")
    matched = ", ".join(f"{number:,} {label}" for label, number in found.matched.items())
    lines.append(f"in the run: {matched}; {found.unmatched:,} labelled captions are not among its {found.captions:,}")
    used = found.negatives == "all captions without a label"
    lines.append(
        f"negatives: {found.negatives}; {found.without_label:,} captions of the run have no label and are "
        f"{'negatives' if used else 'left out'}"
    )
    return lines


def _shown(figure: Estimate) -> str:
    if figure.value is None:
        return "too few"
    interval = "" if figure.low is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.value:.3f}{interval}"
