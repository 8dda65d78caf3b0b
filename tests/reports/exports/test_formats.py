from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest
from jsonschema import Draft202012Validator

from audit.errors import AuditError
from audit.record.filesystem import write_out
from reports.exports.formats import FORMATS, finished_record
from reports.record.model import Record
from reports.record.schema import FILE
from tests.support.changed_run import change_manifest
from tests.support.report_record import without_figures


@pytest.fixture(scope="module")
def remote(run: Path) -> Record:
    """The record of the run read from the memory of this process, as it would be from an object store."""
    fsspec.filesystem("memory").put(str(run), "/exports/run", recursive=True)
    return without_figures(finished_record("memory://exports/run"))


@pytest.mark.parametrize("format_", FORMATS)
def test_an_export_names_the_version_the_run_and_the_model(format_: str, record: Record) -> None:
    content = FORMATS[format_](without_figures(record)).decode()
    assert record.run.crossaudit is not None
    for known in (record.run.crossaudit, record.run.id, record.provenance.models["model"]["unet"]):
        assert known in content


@pytest.mark.parametrize("format_", FORMATS)
def test_a_run_and_a_file_may_be_remote(format_: str, remote: Record, record: Record) -> None:
    assert remote.run.id == record.run.id
    content = FORMATS[format_](remote)
    write_out(content, f"memory://exports/out/{format_}")
    assert fsspec.filesystem("memory").cat(f"/exports/out/{format_}") == content


@pytest.mark.parametrize("redact", [False, True])
def test_json_is_valid_by_the_schema_in_the_repository_and_can_be_read_back(run: Path, redact: bool) -> None:
    record = finished_record(run, redact=redact)
    written = FORMATS["json"](record)
    Draft202012Validator(json.loads(FILE.read_text("utf-8"))).validate(json.loads(written))
    assert Record.model_validate_json(written) == record


def test_what_is_no_finished_run_is_refused(own_run: Path) -> None:
    change_manifest(own_run, finished=None)
    with pytest.raises(AuditError, match="not finished"):
        finished_record(own_run)
    change_manifest(own_run, kind="index")
    with pytest.raises(AuditError, match="an index"):
        finished_record(own_run)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AuditError, match=r"file/out.csv: cannot be written"):
        write_out(b"", str(tmp_path / "file/out.csv"))
