"""The command `crossaudit compare`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import Json, Verbose, check_writable

if TYPE_CHECKING:
    from reports.comparison import Comparison

FAILED = 3


class FailIf(StrEnum):
    """The outcome that makes `crossaudit compare` fail."""

    worse = "worse"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = "Example: crossaudit compare runs/before runs/after --out changes.html --fail-if worse"
    app.command(rich_help_panel=panel, epilog=example)(compare)


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN_A", help="The run to compare with.", show_default=False)],
    second: Annotated[str, typer.Argument(metavar="RUN_B", help="The run in question.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write a page that shows the cases side by side (.html).")
    ] = None,
    fail_if: Annotated[
        FailIf | None,
        typer.Option(help=f"Exit with code {FAILED} if RUN_B copies more, at the one-sided 5 % level."),
    ] = None,
    json_: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare two models: audits of the same captions, images and seeds, caption by caption.

    Only captions that both runs generated and judged are compared. Both runs are
    judged by the same thresholds: the higher ones of the two. Exact McNemar test,
    with families of captions as units.

    The JSON document has the keys runs, captions, pairs (their number), counts
    (appeared, went, stayed, neither), left_out, thresholds, differences,
    protocol, test, changes (the captions that appeared or went) and page.

    Exit codes: 0 done, 1 the runs cannot be compared, 2 wrong usage, 3 --fail-if
    applies.
    """
    from pipelines.console.progress import waiting
    from pipelines.runs.compare import compare as contrast
    from reports.comparison import write
    from reports.tabular import check_suffix

    if out is not None:
        check_suffix(out, (".html", ".htm"))
        check_writable(out)
    with waiting("comparing"):
        found = contrast(first, second)
        if out is not None:
            write(found, out)
    if json_:
        typer.echo(json.dumps(_document(found, out), indent=2))
    else:
        _print(found, out)
    if fail_if and found.test["worse"]:
        raise typer.Exit(FAILED)


def _document(found: Comparison, out: Path | None) -> dict[str, Any]:
    keys = ("caption_id", "caption", "cluster", "change", "image_id", "copy_type", "similarity")
    changes = [row for row in found.pairs.to_pylist() if row["change"] in ("appeared", "went")]
    return {
        "runs": list(found.runs),
        "captions": found.captions,
        "pairs": len(found.pairs),
        "counts": found.counts,
        "left_out": found.left_out,
        "thresholds": found.thresholds,
        "differences": [dict(zip(("name", "first", "second"), item, strict=True)) for item in found.differences],
        "protocol": found.protocol,
        "test": found.test,
        "changes": [{key: row[key] for key in keys} for row in changes],
        "page": None if out is None else str(out),
    }


def _print(found: Comparison, out: Path | None) -> None:
    from rich.text import Text

    from pipelines.console.terminal import Console

    console, counts = Console(soft_wrap=True), found.counts
    console.print(Text(f"{len(found.pairs):,} of {found.captions:,} captions were generated and judged by both runs"))
    for word, meaning in (
        ("appeared", "only the second run copies"),
        ("went", "only the first run copies"),
        ("stayed", "both copy"),
        ("neither", "neither copies"),
    ):
        console.print(Text(f"  {counts[word]:>7,}  {word}: {meaning}"))
    for reason, number in found.left_out.items():
        if number:
            console.print(Text(f"  {number:>7,}  left out: {reason}"))
    for kind, limit in found.thresholds.items():
        values = ", ".join(f"{name} {'none' if value is None else f'{value:.3f}'}" for name, value in limit.items())
        console.print(Text(f"threshold for {kind}: {values}"))
    console.print(Text(found.conclusion))
    if out is not None:
        console.print(Text(str(out)))
