"""A gate compares a run with limits. A waiver takes captions out of the count, and hides nothing."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from audit.errors import AuditError, UsageError
from reports.gate import Gate, gate
from reports.html import render
from reports.query import query
from reports.record.build import build
from reports.waivers import Waiver
from tests.support.markup import text_of

BOTH = ("unknown", "error")


def waiver(**of: str) -> Waiver:
    """Return a waiver for a caption, a family or an image."""
    return Waiver.model_validate({"reason": "logo", "owner": "Ada <ada@example.org>", "expires": date(2999, 1, 1)} | of)


def rows(run: Path, sql: str) -> list[dict[str, Any]]:
    """Return the result of a query."""
    found: list[dict[str, Any]] = query(run, sql).to_pylist()
    return found


def high(run: Path) -> int:
    """Return the number of captions at high risk."""
    return int(rows(run, "select count(*) as n from verdicts where risk = 'high'")[0]["n"])


def failing(found: Gate) -> list[str]:
    """Return the names of the rules that the run does not pass."""
    return [rule.name for rule in found.rules if not rule.passed]


def edited(run: Path, **changes: object) -> Path:
    """Change keys of the manifest of a run."""
    path = run / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return run


def test_captions_at_high_risk_are_counted(run: Path) -> None:
    count = high(run)
    assert count > 1
    assert gate(run, count, allowed=BOTH).passed
    found = gate(run, count - 1, allowed=BOTH)
    assert failing(found) == ["captions at high risk"]
    assert (found.rules[0].figure, found.rules[0].limit) == (count, count - 1)


def test_captions_without_a_verdict_fail_a_run_unless_allowed(run: Path) -> None:
    assert failing(gate(run, 1000)) == ["captions with the verdict unknown", "captions with the verdict error"]
    assert failing(gate(run, 1000, allowed=["error"])) == ["captions with the verdict unknown"]
    assert gate(run, 1000, allowed=BOTH).passed


def test_the_upper_end_of_the_claim_is_what_counts(run: Path) -> None:
    claims = json.loads((run / "manifest.json").read_text())["claims"]["claims"]
    [claim] = [claim for claim in claims if (claim["estimand"], claim["end"]) == ("copies", "at_most")]
    upper = 1e6 * claim["value"] / claim["of"]
    found = gate(run, 1000, upper, allowed=BOTH)
    assert found.passed
    assert found.rules[1].figure == pytest.approx(upper)
    assert len(failing(gate(run, 1000, upper - 1e-3, allowed=BOTH))) == 1


def test_a_run_without_a_claim_does_not_pass_a_bound(own_run: Path) -> None:
    found = gate(edited(own_run, claims={}), 1000, 1e6, allowed=BOTH)
    assert not found.passed
    assert "makes no such claim" in found.rules[1].note


def test_a_waiver_takes_its_caption_out_of_the_count_and_is_listed(run: Path) -> None:
    [first, *_] = rows(run, "select caption_id, caption, verdict from verdicts where risk = 'high' order by caption_id")
    found = gate(run, high(run) - 1, waivers=[waiver(caption_id=first["caption_id"])], allowed=BOTH)
    assert found.passed
    assert found.rules[0].note == "1 more is waived"
    [listed] = found.waived
    assert listed == first | {
        "risk": "high",
        "covers": f"caption_id {first['caption_id']}",
        "reason": "logo",
        "owner": "Ada <ada@example.org>",
        "expires": "2999-01-01",
    }


def test_a_waiver_covers_a_family(run: Path) -> None:
    sql = "select family, count(*) as n from verdicts where family is not null group by all order by n desc limit 1"
    [largest] = rows(run, sql)
    assert largest["n"] > 1
    assert len(gate(run, waivers=[waiver(family=largest["family"])]).waived) == largest["n"]


def test_a_waiver_of_an_image_covers_a_caption_only_if_all_that_it_copies_is_waived(own_run: Path) -> None:
    sql = """select caption_id, list(image_id order by image_id) as images from copied_images
             group by all having count(*) = 1 order by all limit 2"""
    first, second = rows(own_run, sql)
    [image], [other] = first["images"], second["images"]
    assert {row["caption_id"] for row in gate(own_run, waivers=[waiver(image_id=image)]).waived} >= {
        first["caption_id"]
    }
    copied = pq_copied(own_run, first["caption_id"], other)
    assert copied == 2
    for one in (image, other):
        covered = {row["caption_id"] for row in gate(own_run, waivers=[waiver(image_id=one)]).waived}
        assert first["caption_id"] not in covered
    both = [waiver(image_id=image), waiver(image_id=other)]
    assert first["caption_id"] in {row["caption_id"] for row in gate(own_run, waivers=both).waived}


def pq_copied(run: Path, caption: str, image: str) -> int:
    """Let a caption copy another image too, and return how many it copies now."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in sorted((run / "copied_images").glob("*.parquet")):
        table = pq.read_table(path)
        mine = [row for row in table.to_pylist() if row["caption_id"] == caption]
        if mine:
            more = pa.Table.from_pylist([mine[0] | {"image_id": image}], table.schema)
            pq.write_table(pa.concat_tables([table, more]), path)
    found = rows(run, f"select count(*) as n from copied_images where caption_id = '{caption}'")
    return int(found[0]["n"])


def test_a_waiver_that_covers_nothing_is_said(run: Path) -> None:
    [calm] = rows(run, "select caption_id from verdicts where verdict = 'unconfirmed' order by all limit 1")
    unused = waiver(caption_id=calm["caption_id"])
    found = gate(run, waivers=[unused])
    assert (found.waived, found.unused) == ([], [unused])


def test_the_report_marks_waived_cases_and_hides_none(run: Path, page: str) -> None:
    sql = "select caption_id from verdicts where risk = 'high' order by similarity desc, caption_id limit 1"
    [case] = rows(run, sql)
    reason = {"reason": "other", "text": "<b>ours</b>"}
    record = build(run, waivers=[waiver(caption_id=case["caption_id"], **reason)])
    waived = render(record.model_copy(update={"histograms": {}}))
    assert "Waived" not in page
    assert "other: &lt;b&gt;ours&lt;/b&gt;" in waived
    assert "Waived : other: <b>ours</b> . Owner: Ada <ada@example.org> . Until 2999-01-01." in text_of(waived)
    assert waived.count("<article") == page.count("<article")


def test_what_cannot_pass_a_gate_is_refused(own_run: Path) -> None:
    with pytest.raises(AuditError, match="not finished"):
        gate(edited(own_run, finished=None))
    with pytest.raises(AuditError, match="an index"):
        gate(edited(own_run, kind="index"))
    with pytest.raises(UsageError, match="no training images"):
        gate(edited(own_run, kind="audit", finished="2026-01-02T04:09:10+00:00", thresholds={}))
