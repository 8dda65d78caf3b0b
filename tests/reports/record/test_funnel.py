"""The funnel of the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reports.query import query
from reports.record.build import build
from tests.support.changed_run import change_table


def test_a_caption_whose_generation_failed_counts_as_not_generated_as_in_the_view(own_run: Path) -> None:
    sql = "select caption_id from generations where purpose = 'discover' order by all limit 1"
    [failed] = query(own_run, sql)["caption_id"].to_pylist()

    def fail(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"status": "error", "image": None} if row["caption_id"] == failed else row

    before = build(own_run)
    change_table(own_run, "generations", fail)
    after = build(own_run)
    view = {row["step"]: row["captions"] for row in query(own_run, "from funnel").to_pylist()}
    assert {row.step: row.captions for row in after.funnel}.items() <= view.items()
    assert after.answer.generated == view["generated"] == before.answer.generated - 1
