from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from jsonschema import Draft4Validator, FormatChecker

from reports.exports.redaction import redacted
from reports.exports.sarif import to_sarif
from reports.record.captions import SelectedCaption
from reports.record.model import Record, WaiverNote
from tests.support.paths import ROOT

SCHEMA = json.loads((ROOT / "tests/data/sarif-2.1.0.schema.json").read_text("utf-8"))


def run_of(record: Record) -> dict[str, Any]:
    """The only run of the SARIF log of a record, which must be valid."""
    log = json.loads(to_sarif(record))
    Draft4Validator(SCHEMA, format_checker=FormatChecker()).validate(log)
    [run] = log["runs"]
    return dict(run)


def result_of(record: Record, **changes: Any) -> dict[str, Any]:
    """The result of the first confirmed caption, with changed fields."""
    changed = record.model_copy(update={"selected": [record.selected[0].model_copy(update=changes)]})
    [result] = run_of(changed)["results"]
    return dict(result)


def confirmed(record: Record) -> list[SelectedCaption]:
    return [row for row in record.selected if row.verdict in ("verbatim", "partial")]


def test_each_confirmed_caption_is_one_result_of_the_rule_of_its_verdict(record: Record) -> None:
    run = run_of(record)
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["verbatim", "partial"]
    assert [result["ruleId"] for result in run["results"]] == [row.verdict for row in confirmed(record)]
    assert {result["ruleId"] for result in run["results"]} == {"verbatim", "partial"}


@pytest.mark.parametrize(("risk", "level"), [("high", "error"), ("medium", "warning"), ("low", "note")])
def test_the_level_follows_from_the_risk(record: Record, risk: str, level: str) -> None:
    assert result_of(record, risk=risk)["level"] == level


def test_the_fingerprint_depends_on_the_caption_alone(record: Record) -> None:
    known = {"captionId/v1": record.selected[0].caption_id}
    assert result_of(record)["partialFingerprints"] == known
    assert result_of(record, file="moved.parquet", row=7, similarity=0.5)["partialFingerprints"] == known


def test_a_row_of_text_has_a_line_and_a_row_of_parquet_has_none(record: Record) -> None:
    [place] = result_of(record, file="a b/#1.txt", row=4)["locations"]
    assert place["physicalLocation"] == {"artifactLocation": {"uri": "a%20b/%231.txt"}, "region": {"startLine": 5}}
    [place] = result_of(record, file="a.parquet", row=4)["locations"]
    assert place["physicalLocation"] == {"artifactLocation": {"uri": "a.parquet"}}
    assert place["logicalLocations"][0]["fullyQualifiedName"] == "a.parquet#4"


def test_captions_are_no_placeholders_and_no_links(record: Record) -> None:
    text = result_of(record, caption="a {0} [link](https://example.org) \\ \x07")["message"]["text"]
    assert "“a {{0}} \\[link\\](https://example.org) \\\\ ⟨U+0007⟩”" in text


def test_a_waived_caption_is_suppressed_with_its_reason(record: Record) -> None:
    waiver = WaiverNote(covers="family x", reason="logo", owner="Ada", expires=date(2999, 1, 1))
    waived = record.model_copy(update={"waivers": {record.selected[0].caption_id: waiver}})
    first, *others = run_of(waived)["results"]
    assert first["suppressions"] == [{"kind": "external", "status": "accepted", "justification": "logo"}]
    assert not any(result["suppressions"] for result in others)


def test_what_was_not_audited_or_is_left_out_is_said(record: Record) -> None:
    notes = run_of(record.model_copy(update={"selected": []}))["invocations"][0]["toolExecutionNotifications"]
    texts = [note["message"]["text"] for note in notes]
    assert "Not audited (generate): out of memory (1 error)" in texts
    assert f"{len(confirmed(record))} confirmed captions of lower risk are not in this file" in texts
    assert len(run_of(record)["invocations"][0]["toolExecutionNotifications"]) == len(record.not_audited.failures)


def test_a_redacted_log_is_valid_and_locates_a_caption_by_its_id(record: Record) -> None:
    first, *_ = run_of(redacted(record))["results"]
    assert first["locations"] == [{"logicalLocations": [{"name": record.selected[0].caption_id, "kind": "caption"}]}]
