"""What a run shows and records of its stages."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from audit.errors import AuditError
from audit.record.ledger import Ledger, errors_table
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.console.terminal import Console
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest, read
from tests.support.toy import write_config


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def run(tmp_path: Path, said: io.StringIO) -> Run:
    config, given = load_config(write_config(tmp_path))
    ledger = Ledger(config.out)
    return Run(config, ledger, Manifest.open(ledger, config, given), Reporter(Console(file=said, width=80)))


def test_a_stage_shows_the_rows_and_the_errors_that_the_manifest_records(run: Run, said: io.StringIO) -> None:
    with run.stage("screen", "captions") as entry:
        errors = [{"stage": stage, "kind": "odd", "message": "odd"} for stage in ("screen", "screen", "embed")]
        run.ledger.write("errors", "screen-00000", errors_table(errors))
        entry.rows_in, entry.rows_out = 7, 5
    assert re.fullmatch(r"screen: 7 captions, [\d.]+ s, 2 errors\n", said.getvalue())
    recorded = read(run.config.out).stages["screen"]
    assert (recorded.rows_in, recorded.rows_out, recorded.errors) == (7, 5, 2)


def test_a_stage_that_fails_is_shown_as_stopped(run: Run, said: io.StringIO) -> None:
    with pytest.raises(AuditError), run.stage("screen", "captions"):
        raise AuditError("no room")
    assert re.fullmatch(r"screen: stopped after [\d.]+ s\n", said.getvalue())
