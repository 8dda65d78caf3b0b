"""An exception that no code foresaw is told in one line, and its traceback is kept."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest

from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger
from pipelines.commands import detectors
from pipelines.engine.tracebacks import MOST, StepLog, in_one_line, plain
from tests.support.called import called


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracebacks are written into the temporary folder; here it is the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_it_names_the_type_and_the_root_cause_in_one_line() -> None:
    error = raised(TypeError("no\nsuch"), raised(KeyError("x"), OSError("disk")))
    assert in_one_line(error) == "TypeError: no (caused by OSError: disk)"
    assert in_one_line(ValueError()) == "ValueError: ValueError"


def test_a_file_of_the_operating_systems_errors_is_named(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        tmp_path.read_bytes()
    assert str(plain(caught.value)).startswith(f"{tmp_path}: is a directory\nCheck that it exists")


def test_a_command_writes_the_traceback_to_a_file_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.detectors.COMBINED", None)
    code, output, error = called("detectors")
    first, second = error.splitlines()
    assert (code, output) == (1, "")
    assert first.startswith("crossaudit: AttributeError: 'NoneType' object")
    log = re.fullmatch(r"The traceback is in (\S+\.log); --verbose shows it\.", second)
    assert log
    assert Path(log[1]).parent == tmp_path
    text = Path(log[1]).read_text()
    assert text.startswith("crossaudit detectors\n")
    assert "Traceback" in text
    assert detectors.__file__ in text
    assert "Traceback" in called("detectors", "--verbose")[2]


def test_a_step_keeps_its_first_tracebacks_and_its_error_names_them(tmp_path: Path) -> None:
    log = StepLog(Ledger(str(tmp_path)), "cluster: edited copies")
    before = AuditError("broken", where="x", hint="Mend it.", kind="worker_died")
    assert log.naming(before) is before
    for number in range(MOST + 2):
        log.add(f"{number:05d}", f"Traceback {number}\n")
    path = tmp_path / "logs/cluster-edited-copies.log"
    assert path.read_text().count("Traceback") == MOST
    assert "shard 00000\nTraceback 0\n" in path.read_text()
    named = log.naming(before)
    assert (named.what, named.where, named.kind) == ("broken", "x", "worker_died")
    assert str(named).endswith(f"\nMend it. The tracebacks of the first failures are in {path}.")
    assert type(log.naming(UsageError("wrong"))) is UsageError
