"""crossaudit init"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from audit.errors import UsageError
from pipelines.commands.options import Verbose


def register(app: typer.Typer, panel: str) -> None:
    app.command(
        rich_help_panel=panel, epilog="Example: crossaudit init && $EDITOR audit.yaml && crossaudit run audit.yaml"
    )(init)


def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("audit.yaml"), verbose: Verbose = False
) -> None:
    """Write a commented audit.yaml to fill in. Never overwrites one."""
    content = resources.files("pipelines").joinpath("audit.yaml").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise UsageError("is there already", where=str(path), hint="Give another name, or move it away.") from None
    except OSError as error:
        hint = "Give a name in a folder that is there and that you may write to."
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from None
    typer.echo(f"{path}: fill in model, captions, images and calibration, then `crossaudit run {path}`")
