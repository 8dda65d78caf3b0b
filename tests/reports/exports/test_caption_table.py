from __future__ import annotations

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from reports.exports.caption_table import to_csv_file
from reports.record.model import Record


def rows(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_there_is_one_row_per_caption_that_was_looked_at_in_the_order_of_the_record(record: Record) -> None:
    found = rows(to_csv_file(record))
    assert [row["caption_id"] for row in found] == [row.caption_id for row in record.selected]
    assert [row["caption"] for row in found] == [row.caption for row in record.selected]
    assert {row["run_id"] for row in found} == {record.run.id}


@given(st.sampled_from("=+-@\t\r＝"), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n")))
def test_a_caption_is_no_formula(record: Record, first: str, rest: str) -> None:
    caption = first + rest
    hostile = record.selected[0].model_copy(update={"caption": caption, "file": caption})
    [row] = rows(to_csv_file(record.model_copy(update={"selected": [hostile]})))
    assert (row["caption"], row["file"]) == (f"'{caption}", f"'{caption}")


def test_a_run_in_which_nothing_was_looked_at_has_the_names_of_the_columns(record: Record) -> None:
    content = to_csv_file(record.model_copy(update={"selected": []}))
    assert content.startswith(b'"caption_id","caption","verdict"')
    assert rows(content) == []
