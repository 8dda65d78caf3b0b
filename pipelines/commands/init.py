"""The command `crossaudit init`."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from audit.errors import UsageError
from pipelines.commands.options import Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(
        rich_help_panel=panel, epilog="Example: crossaudit init && $EDITOR audit.yaml && crossaudit run audit.yaml"
    )(init)


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("audit.yaml"), verbose: Verbose = False
) -> None:
    """Write a commented audit.yaml for you to fill in. Never overwrites a file."""
    content = resources.files("pipelines").joinpath("audit.yaml").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise UsageError(f"{path} already exists", hint="Choose another name, or move the file away.") from None
    except OSError as error:
        hint = "Choose a path in an existing folder that you can write to."
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from None
    typer.echo(f"{path}: fill in model, captions, images and calibration, then run `crossaudit run {path}`")
