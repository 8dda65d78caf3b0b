"""An exception that no code foresaw is told in one line, and its traceback is kept."""

from __future__ import annotations

import pickle
import re
import tempfile
from pathlib import Path

import pytest

from audit.errors import AuditError
from pipelines.commands import detectors
from pipelines.engine.tracebacks import LONGEST, WorkerError, in_one_line, plain, portable, text_of
from tests.support.called import crossaudit


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
    code, output, error = crossaudit("detectors")
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
    assert "Traceback" in crossaudit("detectors", "--verbose")[2]


class UnpicklableError(Exception):
    """It can be pickled, but not unpickled: its class wants two arguments and pickle passes one."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def test_an_exception_of_a_worker_reaches_the_driver_with_its_traceback_whatever_it_is() -> None:
    sent = portable(raised(UnpicklableError("one", "two"), raised(KeyError("x"))))
    received = pickle.loads(pickle.dumps(sent))
    assert str(received) == "UnpicklableError: one and two"
    assert "in raised" in received.traceback
    assert "KeyError: 'x'" in received.traceback
    assert received.traceback.endswith("UnpicklableError: one and two")
    assert received.error is None


def test_an_audit_error_of_a_worker_stays_what_it_is() -> None:
    error = AuditError("no room", where="x", hint="Free some.", kind="disk_full")
    received = pickle.loads(pickle.dumps(portable(raised(error))))
    assert type(received.error) is AuditError
    assert (str(received.error), received.error.kind) == (str(error), "disk_full")


def test_the_end_of_a_long_traceback_is_kept_and_a_table_can_store_it() -> None:
    text = portable(raised(ValueError("é" * LONGEST + "\udcff the end"))).traceback
    assert len(text.encode()) <= LONGEST
    assert text.startswith("...é")
    assert text.endswith("\\udcff the end")


def test_the_traceback_of_the_worker_is_shown_and_not_that_of_the_driver() -> None:
    error = raised(AuditError("the run ends"), WorkerError("ValueError: bad", "Traceback\n  in the worker"))
    assert text_of(error) == "In a worker:\nTraceback\n  in the worker\n"
    assert "in raised" in text_of(raised(ValueError("bad")))


def test_an_exception_of_a_worker_is_named_as_it_was_raised() -> None:
    assert str(plain(WorkerError("ValueError: bad", "Traceback"))).startswith("ValueError: bad\nThe traceback is in ")
