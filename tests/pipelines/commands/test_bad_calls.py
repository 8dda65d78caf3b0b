"""Every known bad input of every command: a plain message that names it, a remedy and the documented exit code."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipelines.commands.called import called

ROOT_ONLY = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")


def assert_plain(arguments: tuple[str, ...], named: str, codes: tuple[int, ...] = (1, 2)) -> str:
    """The command fails with a message of two lines or more: what is wrong with `named`, and what to do."""
    code, output, error = called(*arguments)
    shown = f"crossaudit {' '.join(arguments)}: exit code {code}\n{output}{error}"
    assert code in codes, shown
    assert "unexpected" not in error.lower() and "Traceback" not in error and "traceback is in" not in error, shown
    assert not re.search(r"\b[A-Z]\w*(Error|Exception|Invalid)\b", error), shown
    assert named in error.replace("\n", ""), shown
    assert len(error.strip().splitlines()) >= 2, shown
    return error


# -- commands that read a run ---------------------------------------------------------------------------------------

OF_A_RUN = {
    "status": (),
    "logs": (),
    "stop": (),
    "mitigate": (),
    "query": ("select * from verdicts",),
    "report": (),
    "check": (),
    "purge": ("--keep", "none"),
    "lookup": ("--text", "caption"),
    "reproduce": ("a verbatim caption",),
    "export": (),
    "layers": (),
}


def manifest_of(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "manifest.json").write_bytes(content)
        return folder

    return make


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("no run")
    return folder / "file"


def foreign_files(folder: Path) -> Path:
    (folder / "thesis.doc").write_text("no run")
    return folder


def a_folder_as_manifest(folder: Path) -> Path:
    (folder / "manifest.json").mkdir()
    return folder


BAD_RUNS: dict[str, Callable[[Path], Path | str]] = {
    "missing": lambda folder: folder / "nowhere",
    "a file": a_file,
    "below a file": lambda folder: a_file(folder) / "run",
    "empty": lambda folder: folder,
    "foreign files": foreign_files,
    "empty manifest": manifest_of(b""),
    "truncated manifest": manifest_of(b'{"version": "0.1.0", "resol'),
    "binary manifest": manifest_of(b"\xff\xfe\x00\x01"),
    "list as manifest": manifest_of(b"[1, 2]"),
    "number as manifest": manifest_of(b"7"),
    "foreign manifest": manifest_of(b'{"name": "my app", "icons": []}'),
    "folder as manifest": a_folder_as_manifest,
    "unknown scheme": lambda folder: "nowhere://bucket/run",
    "NUL in the path": lambda folder: "ru\0n",
    "empty path": lambda folder: "",
}


@pytest.mark.parametrize("cause", BAD_RUNS)
@pytest.mark.parametrize("command", OF_A_RUN)
def test_what_is_no_run_is_named(tmp_path: Path, command: str, cause: str) -> None:
    run = str(BAD_RUNS[cause](tmp_path))
    assert_plain((command, run, *OF_A_RUN[command]), run.replace("\0", "\\x00"))
