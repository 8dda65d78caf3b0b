"""The command `crossaudit config`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from audit.errors import UsageError
from pipelines.commands.options import Overrides, Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit config audit.yaml --set generate.steps=20")(config)


def config(
    path: Annotated[str | None, typer.Argument(metavar="[AUDIT.YAML]", help="The configuration to resolve.")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of audit.yaml instead.")] = False,
    set_: Overrides = None,
    verbose: Verbose = False,
) -> None:
    """Check a configuration and print it in full, with all defaults and with absolute paths."""
    import yaml

    from pipelines.configuration.config import Config
    from pipelines.configuration.settings import check_detectors, load_config

    if schema:
        typer.echo(json.dumps(Config.model_json_schema(), indent=2))
        return
    if path is None:
        raise UsageError("no configuration: pass a file or --schema", hint="For example: crossaudit config audit.yaml")
    settings, _ = load_config(path, set_ or [])
    check_detectors(settings)
    typer.echo(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), nl=False)
