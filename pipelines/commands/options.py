"""Options shared by several commands."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from audit.errors import UsageError


@dataclass
class State:
    """Settings of the whole process."""

    verbose: bool = False


state = State()


class Level(StrEnum):
    """The lowest level of what is logged."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def _verbose(asked: bool) -> None:
    state.verbose = state.verbose or asked


Verbose = Annotated[
    bool, typer.Option("--verbose", callback=_verbose, help="Show internal steps, and the traceback of an error.")
]
LogLevel = Annotated[Level, typer.Option("--log-level", help="The lowest level that is logged to RUN/logs.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to stdout; everything else goes to stderr.")
]
RunDir = Annotated[str, typer.Argument(metavar="RUN", help="The run: a folder or a URI.", show_default=False)]
ConfigFile = Annotated[str, typer.Argument(metavar="AUDIT.YAML", help="The configuration.", show_default=False)]
Device = Annotated[str, typer.Option(help="Device: cpu, cuda or cuda:1.")]
Dtype = Annotated[
    str, typer.Option(help="Data type: auto, float32, bfloat16 or float16. auto means float32 on the CPU.")
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The cluster's dashboard, if its address has changed since the run was submitted."
    ),
]
Waivers = Annotated[Path | None, typer.Option(metavar="FILE", help="YAML list of waivers (docs/how-to/ci.md).")]
Redacted = Annotated[
    bool,
    typer.Option(
        "--redacted",
        help="Leave out pictures, captions, files, addresses and names. A caption_id stands for a caption.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as select.budget=500. Repeatable."),
]
AcceptUnlike = Annotated[
    bool,
    typer.Option(
        "--accept-unlike-controls",
        help="Go on with control captions that are unlike the dataset, and withhold all p-values.",
    ),
]


def overrides(set_: list[str] | None, accept_unlike: bool) -> list[str]:
    """Return the overrides of --set, and that of --accept-unlike-controls."""
    return [*(set_ or []), *(["calibration.accept_unlike=true"] if accept_unlike else [])]


def check_writable(path: Path) -> None:
    """Check that a file can be written, before any work starts.

    Raises:
        UsageError: The path is a folder, its parent folder does not exist, or permission is denied.
    """
    hint = "Choose another --out."
    if path.is_dir():
        raise UsageError("is a folder, not a file", where=str(path), hint=hint)
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist", where=str(path), hint=hint)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError("cannot be written: permission denied", where=str(path), hint=hint)
