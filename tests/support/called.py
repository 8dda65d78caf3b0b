"""Call the command line within the test process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest

from pipelines.cli import main
from pipelines.commands.options import state


def called(*arguments: str) -> tuple[int, str, str]:
    """Run `crossaudit ARGUMENTS` and return its exit code, standard output and standard error."""
    output, error = io.StringIO(), io.StringIO()
    state.verbose = False
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(error):
        patch.setattr(sys, "argv", ["crossaudit", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
    return ended.value.code or 0, output.getvalue(), error.getvalue()
