"""Every format gives back what was written, cut anywhere; what is no caption is a row of errors that says why."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audit.errors import AuditError, UsageError
from pipelines.configuration.inputs import Captions
from pipelines.reading import captions as reading
from pipelines.reading import slices as slices_of
from pipelines.reading.files import find
from tests.support.caption_files import as_csv, as_json, sample, write_lines
from tests.support.damage import corrupt
from tests.support.toy import write_parquet, write_tar

Rows = list[dict[str, Any]]


def packed(path: Path, content: bytes) -> None:
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


FORMATS: dict[str, tuple[str, Callable[[Path, list[str]], None]]] = {
    "parquet": ("0.parquet", lambda path, texts: write_parquet(path, {"caption": pa.array(texts, pa.string())})),
    "tar, txt": ("0.tar", lambda path, texts: write_tar(path, sample(texts, "txt"))),
    "tar, json": ("0.tar", lambda path, texts: write_tar(path, sample(texts, "json"))),
    "jsonl": ("0.jsonl", lambda path, texts: write_lines(path, as_json(texts))),
    "jsonl.gz": ("0.jsonl.gz", lambda path, texts: write_lines(path, as_json(texts))),
    "jsonl of CRLF": ("0.ndjson", lambda path, texts: write_lines(path, as_json(texts), b"\r\n")),
    "csv": ("0.csv", lambda path, texts: packed(path, as_csv(texts, ","))),
    "csv.gz": ("0.csv.gz", lambda path, texts: packed(path, as_csv(texts, ","))),
    "tsv": ("0.tsv", lambda path, texts: packed(path, as_csv(texts, "\t"))),
    "tsv with a mark": ("0.tsv", lambda path, texts: packed(path, b"\xef\xbb\xbf" + as_csv(texts, "\t"))),
    "txt": ("0.txt", lambda path, texts: write_lines(path, [text.encode() for text in texts])),
    "txt.gz of CRLF": ("0.txt.gz", lambda path, texts: write_lines(path, [text.encode() for text in texts], b"\r\n")),
}


def read(path: Path | str, step: int = 1 << 30, **options: Any) -> tuple[Rows, Rows, int]:
    """(rows with a caption, rows of errors, rows that the plan counts), read `step` rows at a time."""
    captions = Captions(path=str(path), **options)
    [file] = find(str(path), "captions")
    reading.check([file], captions)
    parts, errors = reading.plan(file, captions)
    assert [part.first for part in parts] == np.cumsum([0, *(part.rows for part in parts)])[:-1].tolist()
    rows: Rows = []
    for part in parts:
        for start in range(0, part.rows, step):
            table, problems = reading.read(part, start, min(start + step, part.rows), captions)
            rows += table.to_pylist()
            errors += problems
    return rows, errors, sum(part.rows for part in parts)


@pytest.fixture(autouse=True)
def small_slices() -> Iterator[None]:
    """So that a few rows are several slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slices_of, "SLICE_ROWS", 4)
        yield


def texts_of(format: str) -> st.SearchStrategy[str]:
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
    # A line of plain text is what no line end is in, and is not empty; a text without a mark comes back without.
    lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), min_size=1, max_size=12)
    return lines if format.startswith("txt") else text.filter(lambda value: not value.startswith("\ufeff"))


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), step=st.integers(1, 5))
def test_any_texts_come_back_cut_anywhere(
    format: str, data: st.DataObject, step: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, write = FORMATS[format]
    path = tmp_path_factory.mktemp("any") / name
    texts = data.draw(st.lists(texts_of(format), min_size=1, max_size=14))
    write(path, texts)
    rows, errors, planned = read(path, step)
    assert errors == []
    assert planned == len(texts)
    assert [(row["row"], row["caption"]) for row in rows] == list(enumerate(texts))
    if format not in ("parquet", "txt", "txt.gz of CRLF"):
        assert [row["key"] for row in rows] == [f"k{row}" for row in range(len(texts))]


def cut_short(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


@pytest.mark.parametrize("format", ["jsonl.gz", "csv.gz", "tar, txt", "tar, json"])
def test_of_a_truncated_file_the_rows_before_the_cut_are_read_and_the_rest_is_of_unknown_size(
    format: str, tmp_path: Path
) -> None:
    name, write = FORMATS[format]
    rng = np.random.default_rng(0)
    texts = [rng.integers(ord("a"), ord("z"), 2000, np.uint8, endpoint=True).tobytes().decode() for _ in range(400)]
    write(tmp_path / name, texts)
    cut_short(tmp_path / name, 0.6)
    rows, errors, planned = read(tmp_path / name)
    [whole] = [error for error in errors if error["rows"] is None]
    assert (whole["kind"], whole["row"]) == ("unreadable_file", None)
    assert 0 < len(rows) < 400
    assert len(rows) + sum(error["rows"] or 0 for error in errors) == planned
    complete = [row for row in rows if len(row["caption"]) == 2000]
    assert [row["caption"] for row in complete] == texts[: len(complete)]
    assert len(complete) >= len(rows) - 1


def test_a_damaged_row_group_costs_its_own_rows_and_is_named(tmp_path: Path) -> None:
    """Wherever a slice of three row groups of 16 rows is cut, and whichever rows a sample takes."""
    path = tmp_path / "0.parquet"
    write_parquet(path, {"caption": [f"caption {row}" for row in range(48)]})
    corrupt(path, 1, "caption")
    options = Captions(path=str(path))
    [file] = find(str(path), "captions")
    [part] = reading.plan(file, options)[0]
    for start, stop in ((0, 48), (0, 20), (20, 48), (30, 31), (0, 16)):
        for chosen in (None, np.arange(start, stop, 3)):
            table, errors = reading.read(part, start, stop, options, chosen)
            wanted = range(start, stop) if chosen is None else chosen.tolist()
            assert table["row"].to_pylist() == [row for row in wanted if not 16 <= row < 32]
            lost = [row for row in wanted if 16 <= row < 32]
            assert sum(error["rows"] for error in errors) == len(lost)
            assert all("row group 1: " in error["message"] for error in errors)
            if start == 0 and stop == 48:
                assert [(e["file"], e["row"], e["kind"]) for e in errors] == [("0.parquet", 16, "unreadable_file")]


BROKEN = {
    "0.jsonl": [
        (b'{"caption": "good"}', None),
        (b'{"caption": "broken', ("malformed", "broken JSON")),
        (b"", ("empty_line", "expected a JSON object")),
        (b'["a list"]', ("malformed", "expected a JSON object, not list")),
        (b'{"text": "other"}', ("no_caption", "no 'caption'; there is text")),
        (b'{"caption": null}', ("missing_caption", "null")),
        (b'{"caption": 7}', ("malformed", "'caption' is int, not text")),
        (b'{"caption": "caf\xe9"}', ("invalid_utf8", "byte 16")),
        (b'{"caption": "\\ud800"}', ("invalid_utf8", "byte 0")),
        (b"[" * 100_000, ("malformed", "broken JSON")),
        (b'{"caption": "' + b"x" * 200_000 + b'"}', ("too_long", "no caption is")),
        (b'{"caption": ""}', None),
    ],
    "0.csv": [
        (b"u,caption", None),
        (b"u,good", None),
        (b"u,one,two", ("malformed", "3 fields; expected 2: u, caption")),
        (b"u", ("missing_caption", "the caption is null")),
        (b"", ("empty_line", "expected a row")),
        (b'u,"quoted" and not', ("malformed", "broken CSV")),
        (b"u,caf\xe9", ("invalid_utf8", "byte 3")),
        (b"u," + b"x" * 200_000, ("too_long", "no caption is")),
        (b"u,", None),
    ],
    "0.txt": [
        (b"\xef\xbb\xbfgood", None),
        (b"", ("empty_line", "expected a caption")),
        (b"caf\xe9", ("invalid_utf8", "byte 3")),
        (b"x" * 200_000, ("too_long", "no caption is")),
        (b"no newline behind", None),
    ],
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_row_is_one_row_of_errors_that_says_what_was_expected(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices_of, "LONGEST", 150_000)
    monkeypatch.setattr("pipelines.reading.delimited.LONGEST", 150_000)
    path = tmp_path / name
    path.write_bytes(b"\n".join(line for line, _ in BROKEN[name]))
    expected = [problem for _, problem in BROKEN[name]][name.endswith(".csv") :]
    rows, errors, planned = read(path, 3)
    assert planned == len(expected)
    assert [row["row"] for row in rows] == [row for row, problem in enumerate(expected) if problem is None]
    errors.sort(key=lambda error: error["row"])
    for error, row in zip(errors, [row for row, problem in enumerate(expected) if problem], strict=True):
        kind, message = expected[row] or ("", "")
        assert (error["row"], error["kind"], error["rows"], error["file"]) == (row, kind, 1, name), error
        assert message in error["message"]
    assert "good" in [row["caption"] for row in rows]


def test_a_quote_without_end_ends_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.reading.delimited.LONGEST", 1000)
    (tmp_path / "0.csv").write_bytes(b'caption\ngood\n"never closed\n' + b"more\n" * 1000)
    rows, [error], planned = read(tmp_path / "0.csv")
    assert [row["caption"] for row in rows] == ["good"]
    assert planned == 1
    assert error["rows"] is None
    assert "quote is never closed" in error["message"]


def test_samples_of_a_tar_may_have_several_captions_or_none(tmp_path: Path) -> None:
    members = [
        ("a.jpg", b"x"),
        ("a.json", json.dumps({"caption": ["one", "two", "one", None], "url": "u", "status": "success"}).encode()),
        ("b.json", b'{"caption": "of the json"}'),
        ("b.txt", b"of the text"),
        ("c.json", b'{"width": 3}'),
        ("c.txt", b"of the text"),
        ("d.jpg", b"x"),
        ("e.json", b'{"caption": []}'),
        ("f.json", b'{"caption": "lost", "status": "failed_to_download"}'),
        ("g.json", b"{"),
    ]
    write_tar(tmp_path / "0.tar", members)
    rows, errors, planned = read(tmp_path / "0.tar", 2)
    assert planned == 7
    assert [(row["row"], row["key"], row["caption"], row["url"]) for row in rows] == [
        (0, "a", "one", "u"),
        (0, "a", "two", "u"),
        (1, "b", "of the json", None),
        (2, "c", "of the text", None),
    ]
    found = {(error["row"], error["kind"], error["rows"]) for error in errors}
    # The null among the captions of the first sample is told; its row is counted by the others.
    assert found == {
        (0, "missing_caption", 0),
        (3, "no_caption", 1),
        (4, "missing_caption", 1),
        (None, "not_downloaded", 1),
        (6, "malformed", 1),
    }


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_list_gives_a_row_for_each_different_caption_of_it(form: str, tmp_path: Path) -> None:
    values = [["a", "b", "a"], [], None, [None, "c"], ["d"]]
    path = tmp_path / f"0.{form}"
    if form == "parquet":
        write_parquet(path, {"caption": pa.array(values, pa.list_(pa.string()))})
    else:
        write_lines(path, [json.dumps({"caption": value}).encode() for value in values])
    rows, errors, planned = read(path, 2)
    assert [(row["row"], row["caption"]) for row in rows] == [(0, "a"), (0, "b"), (3, "c"), (4, "d")]
    assert sorted((error["row"], error["rows"]) for error in errors) == [(1, 1), (2, 1), (3, 0)]
    assert len({row["row"] for row in rows}) + sum(error["rows"] for error in errors) == planned == 5


def test_an_unknown_format_lists_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "0.arrow").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"0.arrow: no format.*\n.*\.parquet, \.tar, \.jsonl, .*\.gz"):
        read(tmp_path / "0.arrow")


@pytest.mark.parametrize("form", ["jsonl", "csv", "tar, json"])
def test_a_column_that_is_not_there_is_wrong_usage(form: str, tmp_path: Path) -> None:
    name, write = FORMATS[form]
    write(tmp_path / name, ["a", "b"])
    with pytest.raises(
        UsageError, match=r"no column 'captions'; there is .*\n.*Did you mean captions.caption: caption"
    ):
        read(tmp_path / name, caption="captions")


def test_a_tar_of_images_alone_is_wrong_usage(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.jpg", b"x"), ("b.jpg", b"x")])
    with pytest.raises(UsageError, match="its first 2 samples have no caption"):
        read(tmp_path / "0.tar")


def test_when_no_file_can_be_read_that_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"x" * 100)
    (tmp_path / "1.csv.gz").write_bytes(b"x" * 100)
    with pytest.raises(AuditError, match="none of 2 files can be read"):
        reading.check(find(f"{tmp_path}/*", "captions"), Captions(path="x"))


def test_a_slice_ends_at_so_many_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices_of, "SLICE_BYTES", 10)
    write_lines(tmp_path / "0.txt", [b"four", b"more", b"of", b"them"])
    [file] = find(str(tmp_path / "0.txt"), "captions")
    parts, _ = reading.plan(file, Captions(path="x"))
    assert [(part.first, part.rows, part.place) for part in parts] == [(0, 2, (0, 10)), (2, 2, (10, 18))]


def test_any_filesystem_of_fsspec_is_read() -> None:
    with fsspec.open("memory://captions/0.txt", "wb") as file:
        file.write(b"one\ntwo\n")
    rows, errors, _ = read("memory://captions/0.txt")
    assert [row["caption"] for row in rows] == ["one", "two"]
    assert errors == []


def test_the_delimiter_is_that_of_the_line_of_names_and_short_rows_have_nulls(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(";caption;URL\n0;a dog on a hill;u\n1;a red bus, at night;v\n")
    rows, errors, _ = read(tmp_path / "p.csv")
    assert [row["caption"] for row in rows] == ["a dog on a hill", "a red bus, at night"]
    assert not errors
    (tmp_path / "p.csv").write_text('caption,url\n"a picture, number 1"\n')
    rows, errors, _ = read(tmp_path / "p.csv")
    assert [(row["caption"], row["url"]) for row in rows] == [("a picture, number 1", None)]
    assert not errors


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["0.txt", "0.csv", "0.jsonl"])
def test_text_of_another_encoding_is_refused_by_its_name(name: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes("caption\na dog on a hill\n".encode(encoding))
    with pytest.raises(AuditError, match="UTF-(16|32).*not UTF-8|encoding is UTF"):
        read(tmp_path / name)
