"""Call the command line within the test process."""

from __future__ import annotations

import io
import os
import pty
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest

from pipelines.cli import main
from pipelines.commands.options import state


class Called(NamedTuple):
    """What a command leaves behind."""

    returncode: int
    stdout: str
    stderr: str


def crossaudit(*arguments: str | Path, cwd: Path | None = None, columns: int = 120) -> Called:
    """Run `crossaudit ARGUMENTS` with pipes for its output, without colours."""
    output, error = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
    code = _call(arguments, output, error, cwd, {"COLUMNS": str(columns), "NO_COLOR": "1"})
    stdout, stderr = (stream.buffer.getvalue().decode() for stream in (output, error))  # type: ignore[attr-defined]
    return Called(code, stdout, stderr)


def on_a_terminal(*arguments: str, columns: int = 80, term: str = "xterm-256color") -> tuple[int, str]:
    """Run `crossaudit ARGUMENTS` in a terminal, and return its exit code and all that the terminal received."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (50, columns))
    with ThreadPoolExecutor(1) as reader, open(slave, "w", encoding="utf-8") as terminal:
        received = reader.submit(_received, master)
        code = _call(arguments, terminal, terminal, None, {"COLUMNS": str(columns), "TERM": term})
    os.close(master)
    return code, received.result().decode()


def _call(
    arguments: tuple[str | Path, ...], output: TextIO, error: TextIO, cwd: Path | None, environment: dict[str, str]
) -> int:
    state.verbose = False
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(error):
        patch.setattr(sys, "argv", ["crossaudit", *map(str, arguments)])
        for name, value in environment.items():
            patch.setenv(name, value)
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code is None or isinstance(ended.value.code, int)
    return ended.value.code or 0


def _received(master: int) -> bytes:
    """Read what a terminal receives until it is closed."""
    content = b""
    with suppress(OSError):  # Linux raises an error once nobody has the terminal open
        while chunk := os.read(master, 1 << 16):
            content += chunk
    return content
