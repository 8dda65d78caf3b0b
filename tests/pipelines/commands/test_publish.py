"""crossaudit publish: the folder, and exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.called import crossaudit
from tests.support.report_run import HOSTILE, build


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every verdict."""
    root = tmp_path_factory.mktemp("publish") / "run"
    build(root)
    return root


def test_the_files_are_named_and_a_second_call_replaces_them(run: Path, tmp_path: Path) -> None:
    to = tmp_path / "public"
    code, output, error = crossaudit("publish", run, "--to", to)
    assert (code, output, error) == (0, f"{to}: index.html, record.json, cases.csv, SHA256SUMS\n", "")
    assert HOSTILE in (to / "cases.csv").read_text("utf-8").replace('""', '"')
    assert crossaudit("publish", run, "--to", to, "--redacted").returncode == 0
    published = "".join(path.read_text("utf-8") for path in to.iterdir())
    assert not re.search(r"data:image|alert\(", published)


def test_a_folder_of_somebody_else_is_refused(run: Path) -> None:
    code, output, error = crossaudit("publish", run, "--to", run)
    assert (code, output) == (2, "")
    assert f"{run}: has a file that `crossaudit publish` did not write" in error
    assert "Give a new or empty folder." in error
