from __future__ import annotations

from pathlib import Path

import pytest

from audit.errors import AuditError, UsageError
from pipelines.reading.control_captions import read_control_captions
from tests.support.toy import write_parquet


def test_control_captions_are_distinct_lines_or_values(tmp_path: Path) -> None:
    (tmp_path / "control_captions.txt").write_bytes("\ufeffone\r\ntwo\n\none\nthr\u2028ee\n".encode())
    assert read_control_captions(str(tmp_path / "control_captions.txt"), "caption") == ["one", "two", "thr\u2028ee"]
    write_parquet(tmp_path / "control_captions.parquet", {"text": ["one", None, "two", "one"]})
    assert read_control_captions(str(tmp_path / "control_captions.parquet"), "text") == ["one", "two"]
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(AuditError, match="not UTF-8"):
        read_control_captions(str(tmp_path / "latin.txt"), "caption")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("n.jsonl", '{"caption": "one", "id": 1}\n{"caption": "two", "id": 2}\n'),
        ("n.csv", "id,caption\n1,one\n2,two\n"),
    ],
)
def test_control_captions_are_read_as_captions_are(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_control_captions(str(tmp_path / name), "caption") == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("n.jsonl", '{"text": "one", "id": 1}\n{"text": "two", "id": 2}\n'),
        ("n.csv", "id,Prompt\n1,one\n2,two\n"),
        ("n.txt", "one\ntwo\n"),
    ],
)
def test_without_a_column_the_default_one_of_the_file_is_read(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_control_captions(str(tmp_path / name)) == ["one", "two"]


def test_an_error_about_the_column_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("text,prompt\none,two\n")
    with pytest.raises(UsageError, match="(?s)no column 'caption'; there is text, prompt.*Set calibration.column"):
        read_control_captions(str(tmp_path / "n.csv"), "caption")
    with pytest.raises(UsageError, match="(?s)there is text, prompt.*Call the column of the captions 'caption'"):
        read_control_captions(str(tmp_path / "n.csv"))
