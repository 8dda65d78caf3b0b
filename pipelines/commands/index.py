"""The command `crossaudit index`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import ConfigFile, Level, LogLevel, Overrides, Verbose, state


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = "Example: crossaudit index audit.yaml --out laion-index, then in audit.yaml: index: {path: laion-index}"
    app.command(rich_help_panel=panel, epilog=example)(index)


def index(
    config: ConfigFile,
    set_: Overrides = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="The folder or URI of the index (default: `index.path`).")
    ] = None,
    log_level: LogLevel = Level.warning,
    verbose: Verbose = False,
) -> None:
    """Embed the training images once, so that audits of all models trained on them can share the index.

    Uses the sections `images`, `confirm` and `engine` of the configuration. Rerun
    the command to resume.
    """
    from pipelines.configuration.settings import absolute, load_config
    from pipelines.console.progress import Reporter
    from pipelines.runs.index import build_index

    settings, given = load_config(config, set_ or [])
    where = None if out is None else absolute(out, Path.cwd())
    path = build_index(settings, given, where, Reporter(verbose=state.verbose), log_level.value)
    typer.echo(f"To use this index, set `index.path: {path}`.")
