"""Text from data reaches a terminal visibly: nothing of it is acted upon, and machine formats keep it as it is."""

from __future__ import annotations

import ast
import csv
import io
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from pipelines.console.progress import Reporter
from pipelines.console.terminal import Console, visible, visible_json
from tests.support.called import crossaudit, on_a_terminal
from tests.support.paths import ROOT
from tests.support.toy import judged

SECRET = "\x1b]52;c;cm0=\x07"  # OSC 52 fills the clipboard
HOSTILE = f"a \x1b[31mred\x1b[0m {SECRET}\x9b2J fox \u202egnp.xof\u202c\u200b\r\x00\x7f\u2028end"
SHOWN = r"a \x1b[31mred\x1b[0m \x1b]52;c;cm0=\x07\x9b2J fox \u202egnp.xof\u202c\u200b\x0d\x00\x7f\u2028end"
WIDE = 400  # columns, so that no text is broken over two lines
PLAIN = "naïve café, 日本語, עברית, می‌خواهم, 👩‍👩‍👧, é\u0301"


def dangerous(text: str) -> set[str]:
    """The characters of a text that a terminal may act on, newlines aside."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - set("\n\u200c\u200d")


@pytest.fixture
def run(tmp_path: Path) -> str:
    """What there is of a run after `verdicts`: a hostile caption, a formula and a plain caption."""
    texts = {"a": HOSTILE, "b": '=HYPERLINK("http://x")', "c": PLAIN}
    return judged(str(tmp_path / "run"), texts, -1.5)


def test_what_a_terminal_would_act_on_is_written_as_an_escape() -> None:
    assert visible(HOSTILE) == SHOWN
    assert visible(PLAIN) == PLAIN
    assert visible("two\nlines") == "two\nlines"
    assert visible("two\nlines", keep="") == r"two\x0alines"


@given(st.text(st.characters()))
def test_nothing_dangerous_is_left_of_any_text(text: str) -> None:
    assert not dangerous(visible(text))
    document = visible_json(json.dumps([text], ensure_ascii=False))
    assert not dangerous(document)
    assert json.loads(document) == [text]


@pytest.mark.parametrize("wrap", [str, Text])
def test_a_console_acts_on_its_own_styles_only(wrap: type) -> None:
    file = io.StringIO()
    Console(file=file, force_terminal=True, color_system="standard", width=200).print(
        wrap(HOSTILE), style="bold", highlight=False
    )
    assert file.getvalue().startswith("\x1b[1m")
    assert not dangerous(file.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", ""))


def test_progress_is_visible() -> None:
    file = io.StringIO()
    reporter = Reporter(Console(file=file, width=200))
    reporter.say(HOSTILE)
    with reporter.stage(HOSTILE, "rows"), reporter.step(HOSTILE, 1, HOSTILE):
        reporter.note(HOSTILE)
    assert file.getvalue().startswith(SHOWN)
    assert not dangerous(file.getvalue())


@pytest.mark.parametrize("format", ["table", "csv", "json"])
def test_query_shows_hostile_captions_on_a_terminal(run: str, format: str) -> None:
    sql = "select caption from captions order by caption_id"
    _, received = on_a_terminal("query", run, sql, "--format", format, columns=WIDE, term="dumb")
    shown = received.replace("\r\n", "\n")
    assert "gnp.xof" in shown
    assert not dangerous(shown)


def test_a_table_for_people_is_visible_in_a_pipe_too(run: str) -> None:
    shown = crossaudit("query", run, "select caption from captions", columns=WIDE).stdout
    assert SHOWN in shown
    assert not dangerous(shown)


def test_csv_in_a_pipe_is_the_data(run: str) -> None:
    done = crossaudit("query", run, "select caption from captions order by caption_id", "--format", "csv")
    rows = list(csv.reader(io.StringIO(done.stdout, newline="")))
    assert rows == [["caption"], [HOSTILE], ['=HYPERLINK("http://x")'], [PLAIN]]


def test_json_is_the_data_wherever_it_goes(run: str) -> None:
    done = crossaudit("query", run, "select caption from captions order by caption_id", "--format", "json")
    assert not dangerous(done.stdout)
    assert [json.loads(line)["caption"] for line in done.stdout.splitlines()][0] == HOSTILE


def test_formulas_are_neutralised_on_request_and_it_says_how_many(run: str) -> None:
    sql = "select caption, score from verdicts order by caption_id limit 1 offset 1"
    done = crossaudit("query", run, sql, "--format", "csv", "--spreadsheet-safe")
    assert done.stdout == '"caption","score"\n"\'=HYPERLINK(""http://x"")",-1.5\n'
    assert "1 cells that look like formulas" in done.stderr
    refused = crossaudit("query", run, sql, "--spreadsheet-safe")
    assert refused.returncode == 2
    assert "--format csv" in refused.stderr


def test_errors_are_visible(tmp_path: Path) -> None:
    for verbose in ([], ["--verbose"]):
        done = crossaudit("query", str(tmp_path / "no \u202e\x9b2J run"), "select 1", *verbose)
        assert done.returncode == 1, done.stderr
        assert not dangerous(done.stderr), done.stderr
        assert r"no \u202e\x9b2J run" in done.stderr


def test_every_console_is_the_one_that_escapes() -> None:
    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        if path.name != "terminal.py":
            for node in ast.walk(ast.parse(path.read_text())):
                taken = node.module if isinstance(node, ast.ImportFrom) else None
                assert taken != "rich.console" or all(name.name != "Console" for name in node.names), path
