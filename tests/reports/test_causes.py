"""Failures are grouped by what caused them, and each cause has an example."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit.errors import AuditError
from audit.record.ledger import Ledger, errors_table
from reports.causes import SCHEMA, causes
from tests.support.manifests import manifest


def trace(line: int, what: str) -> str:
    """A traceback through line 7 of a, which ends at a line of b."""
    frames = f'  File "/x/a.py", line 7, in f\n    g()\n  File "/x/b.py", line {line}, in g\n    raise\n'
    return f"Traceback (most recent call last):\n{frames}{what}"


def found(folder: Path, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    """The causes of a run with these errors, in two parts."""
    ledger = Ledger(str(folder))
    ledger.write_bytes("manifest.json", json.dumps(manifest()).encode())
    ledger.write("errors", "screen-00000", errors_table(rows[::2]))
    ledger.write("errors", "screen-00001", errors_table(rows[1::2]))
    table = causes(ledger.uri)
    assert table.schema.equals(SCHEMA)
    return table.to_pylist()


def error(caption_id: str, message: str, line: int | None = None) -> dict[str, Any]:
    row = {"stage": "screen", "caption_id": caption_id, "kind": "raised", "message": message}
    return row if line is None else row | {"traceback": trace(line, message)}


def test_numbers_quoted_text_and_paths_do_not_tell_causes_apart(tmp_path: Path) -> None:
    messages = ["shape 4 of 'a cat' in /x/1.tar", "shape 15 of 'it' in s3://b/2.tar", 'shape 1,000 of "x" in y/z']
    [cause] = found(tmp_path, *(error(str(n), message) for n, message in enumerate(messages)))
    assert (cause["errors"], cause["cause"]) == (3, "shape # of … in …")
    assert (cause["caption_id"], cause["message"], cause["traceback"]) == ("0", messages[0], None)


@pytest.mark.parametrize("message", ["it can't be read and won't be", "a caption_id is missing"])
def test_words_tell_causes_apart_and_an_apostrophe_is_no_quote(tmp_path: Path, message: str) -> None:
    both = found(tmp_path, error("a", message), error("b", "another"))
    assert {cause["cause"] for cause in both} == {message, "another"}


def test_the_innermost_line_tells_causes_apart(tmp_path: Path) -> None:
    rows = error("c", "ValueError: 1", 3), error("b", "ValueError: 2", 3), error("a", "ValueError: 3", 4)
    first, second = found(tmp_path, *rows)
    assert (first["errors"], second["errors"]) == (2, 1)
    assert (first["caption_id"], first["traceback"]) == ("b", trace(3, "ValueError: 2"))


def test_the_stage_and_the_kind_tell_causes_apart_and_rows_are_added(tmp_path: Path) -> None:
    file = {"stage": "ingest", "file": "0.tar", "kind": "truncated", "message": "cut at 7"}
    rows = file | {"rows": 5}, file | {"file": "1.tar", "rows": 6}, file | {"kind": "damaged"}
    two, one = found(tmp_path, *rows)
    assert (two["errors"], two["rows"], two["file"]) == (2, 11, "0.tar")
    assert (one["errors"], one["rows"], one["kind"]) == (1, None, "damaged")


def test_a_run_without_errors_has_no_causes(tmp_path: Path) -> None:
    assert found(tmp_path) == []


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditError):
        causes(tmp_path)
