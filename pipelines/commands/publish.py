"""The command `crossaudit publish`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import Redacted, RunDir, Verbose, Waivers


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit publish run --to public --redacted")(publish)


def publish(
    run: RunDir,
    to: Annotated[str, typer.Option("--to", metavar="DIR", help="A folder or a URI.", show_default=False)],
    redacted: Redacted = False,
    waivers: Waivers = None,
    verbose: Verbose = False,
) -> None:
    """Write the results of a finished run into a folder that a web server can serve.

    The folder has index.html (the report), record.json, cases.csv and SHA256SUMS.
    It must be new, empty, or hold only what this command wrote before.

    Training images are blurred unless the run set report.show_training_images.
    Generated images are not, even where they are copies; --redacted leaves out
    all pictures, and the text of the dataset.
    """
    from pipelines.configuration.waivers import read_waivers
    from pipelines.console.progress import waiting
    from reports.exports.folder import publish as write
    from reports.exports.formats import finished_record

    given = read_waivers(waivers) if waivers else []
    with waiting("publishing the run"):
        names = write(finished_record(run, given, redacted), to)
    typer.echo(f"{to}: {', '.join(names)}")
