import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from reports.record.build import build
from reports.record.model import Record
from reports.record.schema import FILE, json_schema


def test_the_schema_in_the_repository_is_that_of_the_model() -> None:
    assert json.loads(FILE.read_text("utf-8")) == json_schema(), "run `python -m reports.record.schema`"


def test_a_record_is_valid_by_its_schema_and_can_be_read_back(run: Path) -> None:
    record = build(run)
    written = record.model_dump_json()
    Draft202012Validator(json_schema()).validate(json.loads(written))
    assert Record.model_validate_json(written) == record


def test_unknown_keys_and_other_versions_are_refused(run: Path) -> None:
    content = json.loads(build(run).model_dump_json())
    for change in ({"version": "2"}, {"surprise": 1}):
        with pytest.raises(ValidationError):
            Record.model_validate(content | change)
