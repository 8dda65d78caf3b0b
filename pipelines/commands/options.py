"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer


@dataclass
class State:
    """What holds for the whole process."""

    verbose: bool = False


state = State()


def _verbose(asked: bool) -> None:
    state.verbose = state.verbose or asked


Verbose = Annotated[bool, typer.Option("--verbose", callback=_verbose, help="Show the traceback of an error.")]
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
