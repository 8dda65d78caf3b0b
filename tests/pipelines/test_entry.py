"""`crossaudit` on an install without the packages of `crossaudit[run]`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.paths import ROOT


def without(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as if `module` were not installed."""
    code = f"import sys; sys.modules[{module!r}] = None; from pipelines.entry import main; main()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("module", "arguments"), [("typer", ["--help"]), ("rich", ["--version"]), ("duckdb", ["query", "run", "select 1"])]
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(module: str, arguments: list[str]) -> None:
    shown = without(module, *arguments)
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert shown.stderr == (
        f"crossaudit: the command line needs more packages: {module} is not installed\n"
        "Install them with `pip install 'crossaudit[run]'`.\n"
    )


def test_a_module_of_our_own_that_is_missing_is_no_reason_to_install_more() -> None:
    shown = without("pipelines.commands.run", "--help")
    assert shown.returncode == 1
    assert "pip install" not in shown.stderr
    assert "pipelines.commands.run" in shown.stderr
