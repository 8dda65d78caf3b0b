"""Print what an audit found: verdicts, claims, and commands to look further."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from audit.record.ledger import Ledger
from audit.schema import VERDICT_WORDS
from pipelines.console.terminal import Console
from pipelines.engine.manifest import read
from pipelines.tables.verdicts import count_verdicts
from reports.verdict_words import COLOURS, MEANINGS

# Verdicts whose captions may have a similarity to a training image.
_COMPARED = ("verbatim", "partial", "unconfirmed")


def print_summary(run: str, console: Console | None = None) -> None:
    """Print the verdicts, the claims and the next commands of a finished run.

    Args:
        run: The path or URI of the run.
        console: Where to print (default: standard output).
    """
    console = console or Console()
    counts = count_verdicts(Ledger(run))
    claims = found.sentences if (found := read(run).claims) else []
    console.print()
    console.print(verdict_table(counts, "" if console.options.ascii_only else "■ "))
    if claims:
        console.print("\nWhat can be said about all captions", style="bold")
        for sentence in claims:
            _print_item(console, sentence)
    # Rich must not wrap paths and commands, because they would not survive copy and paste.
    console.print("\nReport", style="bold")
    console.print(Text(f"  {short(run)}/report.html"), soft_wrap=True)
    console.print("\nNext", style="bold")
    for command in next_commands(run, counts):
        console.print(Text(f"  {command}"), soft_wrap=True)


def verdict_table(counts: Mapping[str, int], patch: str) -> Table:
    """Return a table of the verdicts. Verdicts that no caption has are dim.

    Args:
        counts: Number of captions per verdict.
        patch: Text before each verdict, which has the verdict's colour in the report.
    """
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("verdict", no_wrap=True)
    table.add_column("captions", justify="right", no_wrap=True)
    table.add_column("meaning")
    for word in VERDICT_WORDS:
        count = counts.get(word, 0)
        name = Text.assemble((patch, COLOURS[word]), word)
        table.add_row(name, f"{count:,}", MEANINGS[word] if count else "", style="" if count else "dim")
    return table


def next_commands(run: str, counts: Mapping[str, int]) -> list[str]:
    """Return two commands that a shell can run as they are: one shows the highest captions, one checks the run."""
    by = "similarity" if any(counts.get(word) for word in _COMPARED) else "score"
    sql, path = f"select verdict, {by}, caption from verdicts order by {by} desc limit 20", shlex.quote(short(run))
    return [f'crossaudit query {path} "{sql}"', f"crossaudit check {path}"]


def short(run: str) -> str:
    """Return the path of a run relative to the working directory if it lies below it."""
    if "://" in run or not Path(run).is_relative_to(Path.cwd()):
        return run
    path = os.path.relpath(run)
    return f"./{path}" if path.startswith("-") else path


def _print_item(console: Console, text: str) -> None:
    """Print an item of a list: with a hanging indent on a terminal, as one line elsewhere."""
    if console.is_terminal:
        item = Table.grid(padding=(0, 1))
        item.add_row("-", Text(text))
        console.print(item)
    else:
        console.print(Text(f"- {text}"), soft_wrap=True)
