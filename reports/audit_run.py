"""Open a run in Python: its tables, SQL, and a caption with its pictures."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from audit.errors import AuditError
from reports.query import Result, execute, query_errors
from reports.record.source import Source
from reports.shown_caption import ShownCaption, read_caption
from reports.stored_run import locate
from reports.views import connect


def open_run(run: str | Path) -> AuditRun:
    """Open a run to read it, for example in a notebook.

    Args:
        run: The run: a folder or a URI.

    Returns:
        The run. Close it with `close`, or use it in a `with` statement.

    Raises:
        AuditError: This is not a run.
    """
    return AuditRun(run)


class AuditRun:
    """Read a run. Each table and view is an attribute: `audit_run.verdicts.df()`.

    Attributes:
        manifest: The content of manifest.json.
    """

    def __init__(self, run: str | Path) -> None:
        self._run = locate(run)
        self.manifest = self._run.manifest()
        self._opened = ExitStack()
        self._connection = self._opened.enter_context(connect(run))
        self._names = [name for (name,) in self._connection.execute("show tables").fetchall()]

    def sql(self, statement: str, **values: Any) -> Result | None:
        """Run one SQL statement.

        Args:
            statement: The statement.
            values: The values of parameters: `$name` in the statement.

        Returns:
            The result, or None if the statement has none.

        Raises:
            AuditError: The statement fails.
        """
        return execute(self._connection, [self._run], statement, values)

    def show(self, caption: str) -> ShownCaption:
        """Return what the run found about a caption. A notebook shows it with its pictures.

        Training images are blurred unless `report.show_training_images` is true for the run.

        Args:
            caption: The caption, or its caption_id.

        Raises:
            AuditError: The run has no such caption, or a part is damaged.
        """
        with query_errors([self._run]):
            found = read_caption(Source(self._connection, self.manifest, self._run.uri), caption)
        if found is None:
            hint = "Search with `select caption from verdicts where caption ilike '%word%'`."
            raise AuditError(f"the run has no caption {caption!r}", where="show", hint=hint)
        return found

    def close(self) -> None:
        """Close the run."""
        self._opened.close()

    def __getattr__(self, name: str) -> Result:
        if name.startswith("_") or name not in self._names:
            raise AttributeError(f"the run has no table {name!r}: it has {', '.join(self.__dict__.get('_names', ()))}")
        found = self.sql(f'from "{name}"')
        assert found is not None
        return found

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._names]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
