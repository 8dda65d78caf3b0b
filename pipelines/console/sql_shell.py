"""A SQL shell over the views of runs, for people and for pipes."""

from __future__ import annotations

import shutil
import sqlite3
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import duckdb
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import SqlLexer

from audit.errors import AuditError
from pipelines.console.table import show
from pipelines.console.terminal import say
from reports.query import Result, execute, query_errors
from reports.stored_run import StoredRun
from reports.views import VIEWS, definition, identifier

HISTORY = "~/.crossaudit_history"
MOST_ROWS = 40  # of a result, on a terminal
_INTERRUPTED = "Query interrupted"  # the RuntimeError by which DuckDB passes on Ctrl-C
HELP = """\
A statement ends with a semicolon. The runs are read-only.
.tables          list the views
.schema [VIEW]   show the columns of a view, or of all views
.help            show this help
.quit            leave; so does Ctrl-D
Tab completes, and Ctrl-C stops a statement."""


class SqlShell:
    """Run SQL statements and commands that begin with a dot."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, runs: Sequence[StoredRun]) -> None:
        self._connection, self._runs = connection, runs

    def interact(self) -> None:
        """Read from the terminal until the user leaves."""
        session: PromptSession[str] = PromptSession(
            "sql> ",
            history=_history(),
            enable_history_search=True,
            lexer=PygmentsLexer(SqlLexer),
            completer=self.completer(),
            complete_while_typing=False,
            multiline=Condition(lambda: not _complete(get_app().current_buffer.text)),
            prompt_continuation="...> ",
        )
        say(
            f"Views of {', '.join(run.uri for run in self._runs)}. A statement ends with a semicolon; .help shows more."
        )
        while True:
            try:
                text = session.prompt()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if text.strip() in (".quit", ".exit"):
                return
            self._run(text, _print_summary)

    def read(self, lines: Iterable[str]) -> bool:
        """Run what a pipe brings, and print results in full. Returns whether every statement succeeded."""
        done: list[bool] = []
        text = ""
        for line in lines:
            text += line
            if text.strip() in (".quit", ".exit"):
                return all(done)
            if _complete(text):
                done.append(self._run(text, _print_all))
                text = ""
        return all([*done, self._run(text, _print_all)])

    def completer(self) -> WordCompleter:
        """Return what completes keywords, views and columns."""
        sql = """select keyword_name from duckdb_keywords()
                 union select view_name from duckdb_views() where not internal
                 union select column_name from duckdb_columns() where not internal order by all"""
        words = [word for (word,) in self._connection.execute(sql).fetchall()]
        return WordCompleter(words, ignore_case=True)

    def _run(self, text: str, print_result: Callable[[Result], None]) -> bool:
        """Run an input. Print an error, and return whether there was none."""
        try:
            if text.lstrip().startswith("."):
                self._command(*text.split())
                return True
            with query_errors(self._runs):
                statements = self._connection.extract_statements(text)
            for statement in statements:
                result = execute(self._connection, self._runs, statement.query)
                if result is not None:
                    print_result(result)
        except AuditError as error:
            say(str(error), err=True)
            return False
        except (KeyboardInterrupt, RuntimeError) as error:
            if not isinstance(error, KeyboardInterrupt) and str(error) != _INTERRUPTED:
                raise
            say("stopped", err=True)
            return False
        return True

    def _command(self, name: str, *views: str) -> None:
        """Run a command that begins with a dot. Raises AuditError if there is no such command or view."""
        if name == ".help":
            say(HELP)
        elif name == ".tables":
            tables = [table for table in self._names() if table not in VIEWS]
            for title, names in (("views", VIEWS), ("tables", tables)):
                say(textwrap.fill(", ".join(names), 100, initial_indent=f"{title:8}", subsequent_indent=" " * 8))
        elif name == ".schema":
            for view in views or self._names():
                self._describe(view)
        else:
            raise AuditError(f"no such command: {name}", where="sql", hint="`.help` lists the commands.")

    def _describe(self, view: str) -> None:
        """Print what is known of a view: its comment if it has one, its columns and their types."""
        if view in VIEWS:
            say("\n".join(line for line in definition(view).splitlines() if line.startswith("--")))
        found = execute(self._connection, self._runs, f"describe {identifier(view)}")
        columns = found.arrow().to_pylist() if found is not None else []
        say("\n".join([view, *(f"  {column['column_name']}  {column['column_type']}" for column in columns)]))

    def _names(self) -> list[str]:
        """Return the names of the views, without those of single runs if there are several."""
        sql = """select view_name from duckdb_views()
                 where not internal and schema_name = 'main' and not (temporary and $several) order by all"""
        return [name for (name,) in self._connection.execute(sql, {"several": len(self._runs) > 1}).fetchall()]


def _complete(text: str) -> bool:
    """Tell whether an input can be run: it is empty, begins with a dot, or ends with a semicolon outside quotes."""
    return not text.strip() or text.lstrip().startswith(".") or sqlite3.complete_statement(text)


def _print_summary(result: Result) -> None:
    say(result.summary(shutil.get_terminal_size().columns, MOST_ROWS), nl=False)


def _print_all(result: Result) -> None:
    show(result.arrow())


def _history() -> History:
    """Return the history of earlier sessions. It can hold captions, so nobody else may read it."""
    path = Path(HISTORY).expanduser()
    try:
        path.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)
