"""Every process of a run logs to a file of its own in RUN/logs, with the attempt, on any file system."""

from __future__ import annotations

import logging
import re
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from audit.record.ledger import Ledger, Shard
from pipelines.console import logs
from pipelines.console.logs import FOLDER, LONGEST, RunLog

logger = logging.getLogger("some.library")


@pytest.fixture(params=["disk", "memory"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """A run that has begun, on a disk and on what only fsspec opens."""
    uri = str(tmp_path / "run") if request.param == "disk" else f"memory://{uuid.uuid4().hex}/run"
    found = Ledger(uri)
    found.write_bytes("manifest.json", b"{}")
    yield found
    found.filesystem.delete_dir(found.root)


def files(ledger: Ledger) -> list[str]:
    """The content of all logs, in the order of their names."""
    selector = pafs.FileSelector(ledger.path(FOLDER), allow_not_found=True)
    names = sorted(info.base_name for info in ledger.filesystem.get_file_info(selector))
    return [(ledger.read_bytes(f"{FOLDER}/{name}") or b"").decode() for name in names]


def test_a_record_has_its_time_level_and_logger_and_the_attempt(ledger: Ledger) -> None:
    with closing(RunLog(ledger, "worker", "warning")):
        with logs.attempt("screen", Shard("00003", None, 4, 8), 2):
            logger.warning("odd")
        [content] = files(ledger)
    attempt = r"\[screen, shard 00003, rows 4 to 8, attempt 2\]"
    assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ WARNING {attempt} some\.library: odd\n", content)


def test_a_failed_attempt_is_logged_with_its_traceback_and_written_at_once(ledger: Ledger) -> None:
    with closing(RunLog(ledger, "worker", "error")):
        with pytest.raises(ValueError, match="bad"), logs.attempt("screen", Shard("00003", None, 0, 1), 1):
            raise ValueError("bad")
        [content] = files(ledger)
    assert "ERROR [screen, shard 00003" in content
    assert content.endswith("ValueError: bad\n")
    assert "in test_a_failed_attempt_is_logged" in content


@pytest.mark.parametrize(("level", "seen"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 0)])
def test_the_level_says_what_is_logged(ledger: Ledger, level: str, seen: int) -> None:
    with closing(RunLog(ledger, "driver", level)):
        logger.debug("seen")
        logger.info("seen")
        logger.warning("seen")
    assert "".join(files(ledger)).count("seen") == seen


def test_warnings_and_helper_threads_are_logged_too(ledger: Ledger) -> None:
    with closing(RunLog(ledger, "worker", "warning")), logs.about("embed"):
        thread = threading.Thread(target=logger.warning, args=("of a thread",))
        thread.start()
        thread.join()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("of Python", stacklevel=1)
    [content] = files(ledger)
    assert "[embed] some.library: of a thread" in content
    assert "UserWarning: of Python" in content


def test_messages_of_transformers_are_logged_instead_of_printed(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as messages

    try:
        with closing(RunLog(ledger, "worker", "warning")):
            messages.get_logger("transformers.models").warning("a weight is missing")
    finally:
        messages.enable_default_handler()
        messages.disable_propagation()
    [content] = files(ledger)
    assert "transformers.models: a weight is missing" in content
    assert "a weight" not in capsys.readouterr().err


def test_a_full_file_is_followed_by_another(ledger: Ledger) -> None:
    with closing(RunLog(ledger, "worker", "warning")):
        for letter in "abc":
            logger.warning(letter * (LONGEST // 2))
    contents = files(ledger)
    assert len(contents) == 3
    assert all(len(content) <= LONGEST for content in contents)
    assert [content.rstrip()[-1] for content in contents] == ["a", "b", "c"]


def test_a_folder_that_holds_no_run_stays_empty(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "run"))
    with closing(RunLog(ledger, "worker", "warning")):
        logger.warning("too early")
        logs.write()
        assert not Path(ledger.uri).exists()
        ledger.write_bytes("manifest.json", b"{}")
    assert "too early" in files(ledger)[0]


def test_it_leaves_logging_as_it_was(ledger: Ledger) -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    RunLog(ledger, "driver", "debug").close()
    assert (list(root.handlers), root.level) == before
    assert not files(ledger)
