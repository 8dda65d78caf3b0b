"""crossaudit index: how a worker's failure is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit.embedding import descriptor
from tests.support.called import crossaudit
from tests.support.toy import settings_of, write_config


@pytest.mark.slow
def test_verbose_shows_the_traceback_of_the_worker_and_not_that_of_the_driver(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "sscd.safetensors").write_bytes(b"no weights")
    path = write_config(tmp_path, images=str(toy / settings_of()["images"]), engine={"workers": 1})
    code, _, error = crossaudit("index", path, "--out", tmp_path / "index", "--verbose")
    [log] = (tmp_path / "index/logs").glob("*-driver-*")
    assert code == 1
    assert "sscd.safetensors" in error.splitlines()[-2]
    for shown in (error[error.index("In a worker:") :], log.read_text()):
        assert "Traceback (most recent call last):" in shown
        assert descriptor.__file__ in shown
        assert not [name for name in ("pool.py", "cli.py", "ray::") if name in shown]
