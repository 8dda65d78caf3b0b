from __future__ import annotations

import csv
import io

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.spreadsheet import neutralised, to_csv


def read(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1))
def test_text_comes_back_as_it_was(texts: list[str]) -> None:
    assert read(to_csv(pa.table({"text": texts}))) == [["text"], *([text] for text in texts)]


def test_bytes_are_base64_and_nested_values_json() -> None:
    table = pa.table({"image": [b"\xff\x00", None], "layers": [[1, 2], None], "pair": [{"a": "é"}, None]})
    assert read(to_csv(table)) == [["image", "layers", "pair"], ["/wA=", "[1, 2]", '{"a": "é"}'], ["", "", ""]]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_a_cell_that_a_spreadsheet_would_run_begins_with_an_apostrophe(start: str) -> None:
    table, changed = neutralised(pa.table({"text": [f"{start}1", f"a{start}1", None, ""], "number": [-1, 2, 3, 4]}))
    assert changed == 1
    assert table["text"].to_pylist() == [f"'{start}1", f"a{start}1", None, ""]
    assert table["number"].to_pylist() == [-1, 2, 3, 4]


def test_names_of_columns_are_cells_too() -> None:
    table, changed = neutralised(pa.table({"=1+1": ["a"]}))
    assert table.column_names == ["'=1+1"]
    assert changed == 1
