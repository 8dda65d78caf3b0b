"""Options that several commands share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from audit.errors import UsageError


@dataclass
class State:
    """What holds for the whole process."""

    verbose: bool = False


state = State()


def _verbose(asked: bool) -> None:
    state.verbose = state.verbose or asked


Verbose = Annotated[bool, typer.Option("--verbose", callback=_verbose, help="Show the traceback of an error.")]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output; everything else goes to stderr.")
]
RunDir = Annotated[str, typer.Argument(metavar="RUN", help="The run: a folder or a URI.", show_default=False)]
ConfigFile = Annotated[str, typer.Argument(metavar="AUDIT.YAML", help="The configuration.", show_default=False)]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16; auto is float32 on the CPU.")]
Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The dashboard of its cluster, if it is reached otherwise than when submitted."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as select.budget=500. May be repeated."),
]


def check_writable(path: Path) -> None:
    """Check before any work that a file can be written. Raises UsageError if it is a folder or its folder is none."""
    hint = "Give another --out."
    if path.is_dir():
        raise UsageError("is a folder, not a file", where=str(path), hint=hint)
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", where=str(path), hint=hint)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError("cannot be written: permission denied", where=str(path), hint=hint)
