"""Where a run is, as its manifest says."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from audit.errors import AuditError
from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest, read
from pipelines.engine.ray_jobs import Job, current_job
from pipelines.runs.status import has_begun, job_of, last_job, refuse_second, where
from tests.support.toy import write_config


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config, given = load_config(write_config(tmp_path))
    ledger = Ledger(config.out)
    return Run(config, ledger, Manifest.open(ledger, config, given), Reporter(Console(file=io.StringIO())))


def as_job(monkeypatch: pytest.MonkeyPatch, **metadata: str) -> None:
    """This process is a job's driver, as Ray tells it."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": {}, "metadata": metadata}))


def told(run: Run) -> RunManifest:
    return read(run.config.out)


def test_a_run_says_where_it_is_from_its_beginning_to_its_end(run: Run) -> None:
    with run:
        assert re.fullmatch(r"running: starting \(\d+ s ago\)", where(told(run)))
        with run.stage("screen", "captions") as entry:
            assert where(told(run)).startswith("running: screen (")
            with run.progress.step("screen", 1000, "captions") as count:
                count.advance(250, 1)
                count.workers = 2
                run.manifest._pause = 0.0  # no seconds have passed
                run.manifest.progress(count.numbers)
            assert where(told(run)).startswith("running: screen: 250 of 1,000 captions, 1 error, 2 workers (")
            entry.rows_in = 1000
            progress = told(run).progress
            assert progress is not None
            assert (progress.stage, progress.done) == ("screen", 250)
        run.manifest.finish()
    assert where(told(run)).startswith("finished at")
    assert (told(run).progress, told(run).failed) == (None, None)


def test_a_run_that_fails_says_why_and_where_and_forgets_it_when_it_goes_on(run: Run) -> None:
    with pytest.raises(AuditError), run, run.manifest.stage("embed"):
        raise AuditError("there is no room to write it", where="run/x", hint="Make room.")
    line = where(told(run))
    assert re.match(r"stopped at \S+: run/x: there is no room to write it\nLast progress: embed\.", line)
    with run:
        assert told(run).failed is None


@pytest.mark.parametrize("how", [KeyboardInterrupt(), SystemExit(15)])
def test_a_run_that_is_ended_from_outside_was_interrupted(run: Run, how: BaseException) -> None:
    with pytest.raises(type(how)), run:
        raise how
    assert "interrupted" in where(told(run))


def test_a_run_that_was_killed_is_silent(run: Run) -> None:
    run.manifest.begin()
    manifest = told(run)
    manifest.started = (datetime.now(UTC) - timedelta(hours=3)).isoformat(timespec="seconds")
    assert "(3 h 0 min ago); it may have been killed." in where(manifest)
    assert where(manifest, "FAILED").startswith("killed. Last progress: starting.")


def test_a_run_whose_job_was_stopped_before_it_could_record_that_was_stopped(run: Run) -> None:
    run.manifest.begin()
    assert where(told(run), "RUNNING").startswith("running: starting")
    assert where(told(run), "STOPPED").startswith("stopped. Last progress: starting. Rerun")


def test_every_job_that_worked_on_a_run_is_in_its_manifest(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert current_job() is None
    for number in (1, 2):
        as_job(monkeypatch, job_submission_id=f"job-{number}", crossaudit_address="http://head:8265")
        with run:
            pass
    assert [job.id for job in told(run).jobs] == ["job-1", "job-2"]
    assert last_job(run.config.out) == job_of(run.config.out) == Job("job-2", "http://head:8265")
    assert job_of(run.config.out, "http://localhost:9000") == Job("job-2", "http://localhost:9000")


def test_a_job_whose_run_was_refused_has_not_begun_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    as_job(monkeypatch, job_submission_id="job-1", crossaudit_address="http://head:8265")
    uri, job = run.config.out, Job("job-1", "http://head:8265")
    assert not has_begun(uri, job)
    run.manifest.begin()
    assert has_begun(uri, job)
    assert not has_begun(uri, Job("job-2", job.address))
    run.manifest.end(AuditError("no such file", where="nowhere.parquet"))
    assert not has_begun(uri, job)


def test_a_job_that_others_submitted_has_no_address(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    as_job(monkeypatch, job_submission_id="rayjob-x7")
    with run:
        pass
    assert last_job(run.config.out) == Job("rayjob-x7", None)


def test_a_run_of_a_cluster_that_is_gone_may_be_submitted_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_second(run.config.out)  # nothing is there yet
    as_job(monkeypatch, job_submission_id="job-1", crossaudit_address="http://127.0.0.1:9")
    with run:
        pass
    refuse_second(run.config.out)


def test_a_run_that_was_not_submitted_has_no_job(run: Run) -> None:
    with run:
        pass
    assert last_job(run.config.out) is None
    with pytest.raises(AuditError, match="no cluster job has worked on this run"):
        job_of(run.config.out)


def test_what_is_no_run_has_no_job(tmp_path: Path) -> None:
    assert last_job(str(tmp_path)) is None
    with pytest.raises(AuditError, match="this is not a run"):
        job_of(str(tmp_path))
