"""The shell of `crossaudit sql`, from a pipe and from a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from pipelines.console import sql_shell
from pipelines.console.sql_shell import SqlShell
from reports.stored_run import locate
from reports.views import connect
from tests.support.toy import judged

Read = Callable[[str], tuple[bool, str, str]]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[SqlShell]:
    """A shell over a run with two captions."""
    run = judged(str(tmp_path / "run"), {"a": "one;", "b": "two\x1b[31m\u202e"}, 1.5)
    with connect(run) as connection:
        yield SqlShell(connection, [locate(run)])


@pytest.fixture
def read(shell: SqlShell, capsys: pytest.CaptureFixture[str]) -> Read:
    """Return a function that gives the shell a text and returns whether it succeeded, and what it printed."""

    def run(text: str) -> tuple[bool, str, str]:
        succeeded = shell.read(io.StringIO(text))
        return succeeded, *capsys.readouterr()

    return run


def cells(output: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]


def test_the_last_statement_needs_no_semicolon(read: Read) -> None:
    succeeded, output, _ = read("select count(*) from captions")
    assert succeeded
    assert cells(output) == [["2"]]


def test_a_statement_may_take_several_lines_and_a_line_several_statements(read: Read) -> None:
    _, output, _ = read("select 1\n + 1;\nselect 3; select 4;\n")
    assert cells(output) == [["2"], ["3"], ["4"]]


def test_a_semicolon_in_quotes_or_in_a_comment_ends_nothing(read: Read) -> None:
    succeeded, output, _ = read("select caption_id from captions -- all;\n where caption = 'one;'\n;")
    assert succeeded
    assert cells(output) == [["a"]]


def test_an_error_does_not_end_the_shell_but_is_remembered(read: Read) -> None:
    succeeded, output, error = read("selec 1;\nselect 2;\n")
    assert not succeeded
    assert cells(output) == [["2"]]
    assert "syntax error" in error


def test_an_error_of_one_statement_ends_its_line(read: Read) -> None:
    _, output, _ = read("select 1; from nothing; select 2;")
    assert cells(output) == [["1"]]


def test_the_run_is_read_only(read: Read, tmp_path: Path) -> None:
    succeeded, _, error = read(f"copy captions to '{tmp_path}/stolen.csv';")
    assert not succeeded
    assert "disabled by configuration" in error


def test_commands_list_and_explain_the_views(read: Read) -> None:
    succeeded, output, _ = read(".tables\n.schema near_misses\n.help\n")
    assert succeeded
    assert "near_misses" in output
    assert "verdicts" in output
    assert "-- gap: threshold minus similarity" in output
    assert "  gap  DOUBLE" in output
    assert ".quit" in output


def test_an_unknown_command_or_view_is_an_error(read: Read) -> None:
    assert "no such command: .mode" in read(".mode csv\n")[2]
    assert "nothing" in read(".schema nothing\n")[2]


def test_quit_leaves(read: Read) -> None:
    assert cells(read("select 1;\n.quit\nselect 2;\n")[1]) == [["1"]]


def test_no_text_of_the_data_is_interpreted_by_the_terminal(read: Read) -> None:
    output = read("from captions;")[1]
    assert "\x1b" not in output
    assert "\u202e" not in output


def test_several_runs_are_told_apart_by_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [judged(str(tmp_path / name), {name: f"caption of {name}"}, 1.5) for name in ("june", "july")]
    with connect(*runs) as connection:
        shell = SqlShell(connection, [locate(run) for run in runs])
        assert shell.read(io.StringIO("select run, caption from captions order by run;\n.tables\n"))
    output = capsys.readouterr().out
    assert cells(output) == [["july", "caption of july"], ["june", "caption of june"]]
    assert "run_1" not in output


@pytest.mark.parametrize(
    ("typed", "offered"), [("from recall_by_b", {"recall_by_budget"}), ("select region_ag", {"region_agreement"})]
)
def test_tab_completes_keywords_views_and_columns(shell: SqlShell, typed: str, offered: set[str]) -> None:
    found = shell.completer().get_completions(Document(typed), CompleteEvent())
    assert {completion.text for completion in found} == offered


def test_a_person_types_and_finds_the_statements_in_the_history(
    shell: SqlShell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sql_shell, "HISTORY", str(tmp_path / "history"))
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text("select\r 40 + 2;\r")  # the first line is no statement yet
        keys.send_text("wrong;\r")
        keys.send_text("from recall_by_budget;\r")
        keys.send_text("\x03.quit\r")  # Ctrl-C
        shell.interact()
    shown = capsys.readouterr()
    assert "42" in shown.out
    assert "syntax error" in shown.err
    assert "0 rows" in shown.out
    history = tmp_path / "history"
    assert "from recall_by_budget;" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
