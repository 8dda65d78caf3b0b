"""Text from data reaches a terminal visibly: nothing of it is acted upon, and machine formats keep it as it is."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import pty
import subprocess
import sys
import unicodedata
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from pipelines.console.progress import Reporter
from pipelines.console.terminal import Console, visible, visible_json
from tests.support.paths import ROOT
from tests.support.toy import judged

SECRET = "\x1b]52;c;cm0=\x07"  # OSC 52 fills the clipboard
HOSTILE = f"a \x1b[31mred\x1b[0m {SECRET}\x9b2J fox \u202egnp.xof\u202c\u200b\r\x00\x7f\u2028end"
SHOWN = r"a \x1b[31mred\x1b[0m \x1b]52;c;cm0=\x07\x9b2J fox \u202egnp.xof\u202c\u200b\x0d\x00\x7f\u2028end"
PLAIN = "naïve café, 日本語, עברית, می‌خواهم, 👩‍👩‍👧, é\u0301"


def dangerous(text: str) -> set[str]:
    """The characters of a text that a terminal may act on, newlines aside."""
    return {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")} - set("\n\u200c\u200d")


@pytest.fixture
def run(tmp_path: Path) -> str:
    """What there is of a run after `verdicts`: a hostile caption, a formula and a plain caption."""
    texts = {"a": HOSTILE, "b": '=HYPERLINK("http://x")', "c": PLAIN}
    return judged(str(tmp_path / "run"), texts, -1.5)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", *arguments]


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths, "COLUMNS": "400", "NO_COLOR": "1", "TERM": "dumb"}


def piped(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*arguments), capture_output=True, env=environment(), check=False)


def on_a_terminal(*arguments: str) -> str:
    """What a command writes where standard output is a terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(command(*arguments), stdout=slave, stderr=subprocess.DEVNULL, env=environment()):
        os.close(slave)
        content = b""
        with suppress(OSError):  # Linux ends a terminal that nobody writes to any more with an error
            while chunk := os.read(master, 1 << 16):
                content += chunk
    os.close(master)
    return content.decode().replace("\r\n", "\n")


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
    shown = on_a_terminal("query", run, "select caption from captions order by caption_id", "--format", format)
    assert "gnp.xof" in shown
    assert not dangerous(shown)


def test_a_table_for_people_is_visible_in_a_pipe_too(run: str) -> None:
    shown = piped("query", run, "select caption from captions").stdout.decode()
    assert SHOWN in shown
    assert not dangerous(shown)


def test_csv_in_a_pipe_is_the_data(run: str) -> None:
    done = piped("query", run, "select caption from captions order by caption_id", "--format", "csv")
    rows = list(csv.reader(io.StringIO(done.stdout.decode(), newline="")))
    assert rows == [["caption"], [HOSTILE], ['=HYPERLINK("http://x")'], [PLAIN]]


def test_json_is_the_data_wherever_it_goes(run: str) -> None:
    done = piped("query", run, "select caption from captions order by caption_id", "--format", "json")
    assert not dangerous(done.stdout.decode())
    assert [json.loads(line)["caption"] for line in done.stdout.splitlines()][0] == HOSTILE


def test_formulas_are_neutralised_on_request_and_it_says_how_many(run: str) -> None:
    sql = "select caption, score from verdicts order by caption_id limit 1 offset 1"
    done = piped("query", run, sql, "--format", "csv", "--spreadsheet-safe")
    assert done.stdout.decode() == '"caption","score"\n"\'=HYPERLINK(""http://x"")",-1.5\n'
    assert "1 cells that look like formulas" in done.stderr.decode()
    refused = piped("query", run, sql, "--spreadsheet-safe")
    assert refused.returncode == 2
    assert b"--format csv" in refused.stderr


def test_errors_are_visible(tmp_path: Path) -> None:
    for verbose in ([], ["--verbose"]):
        done = piped("query", str(tmp_path / "no \u202e\x9b2J run"), "select 1", *verbose)
        assert done.returncode == 1, done.stderr
        assert not dangerous(done.stderr.decode()), done.stderr
        assert r"no \u202e\x9b2J run" in done.stderr.decode()


def test_every_console_is_the_one_that_escapes() -> None:
    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        if path.name != "terminal.py":
            for node in ast.walk(ast.parse(path.read_text())):
                taken = node.module if isinstance(node, ast.ImportFrom) else None
                assert taken != "rich.console" or all(name.name != "Console" for name in node.names), path
