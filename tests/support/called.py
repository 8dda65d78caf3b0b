"""Call the command line within the test process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import pytest

from pipelines.cli import main
from pipelines.commands.options import state


class Called(NamedTuple):
    """What a command leaves behind."""

    returncode: int
    stdout: str
    stderr: str


def crossaudit(*arguments: str | Path, cwd: Path | None = None) -> Called:
    """Run `crossaudit ARGUMENTS` in a terminal of 120 columns without colours."""
    output, error = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    state.verbose = False
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(error):
        patch.setattr(sys, "argv", ["crossaudit", *map(str, arguments)])
        patch.setenv("COLUMNS", "120")
        patch.setenv("NO_COLOR", "1")
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code is None or isinstance(ended.value.code, int)
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in (output, error))  # type: ignore[attr-defined]
    return Called(ended.value.code or 0, stdout, stderr)
