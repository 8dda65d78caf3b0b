"""What is printed at the end of a run."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest

from audit.record.ledger import Ledger
from audit.record.manifest_entries import ClaimsEntry
from audit.schema import VERDICT_WORDS
from pipelines.console.terminal import Console
from pipelines.engine.manifest import Manifest, read
from pipelines.runs.summary import next_commands, print_summary, short
from reports.verdict_words import COLOURS, MEANINGS
from tests.support.finished import finish_run
from tests.support.screen import screen
from tests.support.toy import write_config

CLAIMS = [
    "Of 50 captions drawn at random from all 3,086, 2 reproduced a training image: at least 4,881 and at most 137,137 "
    "per million captions reproduce under this protocol (95 % confidence).",
    "[red]Brackets[/red] are text.",
]


@pytest.fixture
def run(tmp_path: Path) -> Ledger:
    ledger = finish_run(write_config(tmp_path, out="my run"), "verbatim", "not_selected")
    manifest = Manifest(ledger, read(ledger.uri))
    manifest.data.claims = ClaimsEntry(sentences=CLAIMS)
    manifest.write()
    return ledger


def printed(run: Ledger, terminal: bool = False, width: int = 80) -> str:
    said = io.StringIO()
    print_summary(run.uri, Console(file=said, force_terminal=terminal, width=width))
    return said.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_on_a_terminal_text_is_wrapped_and_commands_are_not(run: Ledger, width: int) -> None:
    lines = screen(printed(run, terminal=True, width=width))
    commands = [line.strip() for line in lines if line.startswith("  crossaudit")]
    assert commands == next_commands(run.uri, {"verbatim": 1})
    text = [line for line in lines if run.uri not in line]
    assert max(map(len, text)) <= width
    start = text.index("What can be said about all captions") + 1
    assert text[start].startswith("- Of 50 captions")
    assert text[start + 1].startswith("  ")
    assert CLAIMS[0] in " ".join(line.strip("- ") for line in text[start:])


def test_in_a_pipe_a_claim_is_one_line(run: Ledger) -> None:
    lines = printed(run).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [f"- {claim}" for claim in CLAIMS]
    assert f"  {run.uri}/report.html" in lines


def test_verdicts_have_the_colours_and_the_meanings_of_the_report(run: Ledger) -> None:
    assert COLOURS.keys() == MEANINGS.keys() == set(VERDICT_WORDS)
    assert COLOURS["not_selected"] == "#8d98a1"  # grey: nobody looked at these captions
    # As HTML: rich writes a style with the colours of the terminal on which this process first used it.
    console = Console(file=io.StringIO(), force_terminal=True, width=80, record=True)
    print_summary(run.uri, console)
    shown = console.export_html(inline_styles=True)
    for word in ("verbatim", "not_selected"):
        assert f'<span style="color: {COLOURS[word]}; text-decoration-color: {COLOURS[word]}">■ </span>{word}' in shown


def test_a_terminal_without_unicode_gets_ascii(run: Ledger) -> None:
    file = io.TextIOWrapper(io.BytesIO(), "ascii")
    print_summary(run.uri, Console(file=file, force_terminal=True, width=80))
    file.flush()
    assert b"verbatim" in file.buffer.getvalue()  # type: ignore[attr-defined]


def test_every_verdict_has_its_count(run: Ledger) -> None:
    counts = {word: 0 for word in VERDICT_WORDS} | {"verbatim": 1, "not_selected": 1}
    rows = [line.split() for line in printed(run).splitlines() if line.startswith("■")]
    assert {word: int(count) for _, word, count, *_ in rows} == counts


def test_a_shell_reads_the_commands_as_they_are_meant(run: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(run.uri).parent)
    for verdict, column in (("partial", "similarity"), ("not_selected", "score")):
        query, check = map(shlex.split, next_commands(run.uri, {verdict: 1}))
        assert query[:3] == ["crossaudit", "query", "my run"]
        assert check == ["crossaudit", "check", "my run"]
        assert query[3] == f"select verdict, {column}, caption from verdicts order by {column} desc limit 20"


def test_a_path_is_short_where_that_is_unambiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert short(str(tmp_path / "runs/june")) == "runs/june"
    assert short(str(tmp_path / "-x")) == "./-x"
    assert short(str(tmp_path.parent / "june")) == str(tmp_path.parent / "june")
    assert short("s3://bucket/june") == "s3://bucket/june"
