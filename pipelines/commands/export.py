"""The command `crossaudit export`."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from pipelines.commands.options import Redacted, RunDir, Verbose, Waivers


class Format(StrEnum):
    """The formats of an export."""

    html = "html"
    json = "json"
    csv = "csv"
    sarif = "sarif"
    croissant = "croissant"
    model_card = "model-card"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = "Example: crossaudit export run --format sarif --out memorization.sarif"
    app.command(rich_help_panel=panel, epilog=example)(export)


def export(
    run: RunDir,
    format_: Annotated[Format, typer.Option("--format", help="What to write.", show_default=False)],
    out: Annotated[
        str | None, typer.Option(metavar="FILE", help="Output file, or a URI (default: standard output).")
    ] = None,
    redacted: Redacted = False,
    waivers: Waivers = None,
    verbose: Verbose = False,
) -> None:
    """Export the results of a finished run in a format that others read.

    html: the report. json: the record from which it is made, with a JSON schema.
    csv: the captions that were looked at. sarif: confirmed captions as findings,
    for CI (SARIF 2.1.0). croissant: properties for the croissant.json of the
    dataset. model-card: a section for the model card, in Markdown.

    Each names the version of crossaudit, the run and the model. The report and
    the record have pictures. With --redacted, they have none, and no text of the
    dataset.
    """
    from audit.record.filesystem import write_out
    from pipelines.configuration.waivers import read_waivers
    from pipelines.console.progress import waiting
    from reports.exports.formats import FORMATS, finished_record
    from reports.record.commands import shell_word

    given = read_waivers(waivers) if waivers else []
    with waiting("reading the run"):
        record = finished_record(run, given, redacted)
        content = FORMATS[format_](record)
    if left_out := record.selected_count - len(record.selected):
        hint = f"crossaudit query {shell_word(run)} \"from verdicts where verdict <> 'not_selected'\""
        typer.echo(f"{left_out:,} captions of lower risk are left out; all of them: {hint}", err=True)
    if out is None:
        _print(content)
    else:
        write_out(content, out)
        typer.echo(out)


def _print(content: bytes) -> None:
    """Write to standard output: unchanged, or with escaped control characters on a terminal."""
    from pipelines.console.terminal import say

    if sys.stdout.isatty():
        say(content.decode(), nl=False)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
