"""Ingest of every format at once: each row somewhere, each caption once, groups as defined, however it is cut."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from audit.duplicates.captions import caption_groups, caption_id
from audit.errors import AuditError
from audit.record.manifest_entries import Accounting
from pipelines.engine.context import Run
from pipelines.stages import ingest
from pipelines.steps import caption_groups as grouping
from pipelines.steps import input_rows
from tests.support.ingested import CONTROL_CAPTIONS, LONG, ingested
from tests.support.toy import write_config, write_parquet, write_tar

pytestmark = pytest.mark.slow

TEXTS = [f"picture {number} of a thing" for number in range(40)] + [LONG.format(number) for number in range(8)]
TWINS = ["Picture 3, of a THING", "a lamp"]
TABLES = ("rows", "captions", "caption_groups", "errors")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_parquet(folder / "in/0.parquet", {"caption": TEXTS[:20], "key": [str(row) for row in range(20)]})
    write_tar(folder / "in/1.tar", [(f"{row}.txt", text.encode()) for row, text in enumerate(TEXTS[15:30])])
    (folder / "in/2.jsonl").write_text("\n".join(json.dumps({"caption": [text, TEXTS[0]]}) for text in TEXTS[28:36]))
    (folder / "in/3.csv").write_text("caption\n" + "".join(f'"{text}"\n' for text in TEXTS[34:44]) + "a,b\n")
    (folder / "in/4.txt").write_text("\n".join([*TEXTS[40:], "", *TWINS]))
    (folder / "in/5.txt.gz").write_bytes(b"\x1f\x8b no gzip")
    (folder / "control_captions.txt").write_text("a river\n")
    return write_config(folder, captions="in/*", images=None, calibration={"captions": "control_captions.txt"})


@pytest.fixture(scope="module")
def run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return ingested(dataset, tmp_path_factory.mktemp("whole") / "run")


def content(run: Run, table: str) -> list[dict[str, Any]]:
    return sorted(run.ledger.read(table).to_pylist(), key=str)


def test_every_row_is_a_caption_or_an_error(run: Run) -> None:
    errors = content(run, "errors")
    places = {(row["file"], row["row"]) for row in content(run, "rows")}
    counted = run.manifest.data.accounting.model_dump(exclude_unset=True)
    assert counted == {"input_rows": 20 + 15 + 8 + 11 + 11, "sampled_out": 0}
    assert len(places) + sum(error["rows"] or 0 for error in errors) == counted["input_rows"]
    assert {(error["file"], error["row"], error["kind"], error["rows"]) for error in errors} == {
        ("3.csv", 10, "malformed", 1),
        ("4.txt", 8, "empty_line", 1),
        ("5.txt.gz", None, "unreadable_file", None),
    }


def test_every_caption_is_there_once_with_its_copies_in_the_order_of_ids(run: Run) -> None:
    expected = Counter(TEXTS[:20] + TEXTS[15:30] + TEXTS[28:36] + [TEXTS[0]] * 8 + TEXTS[34:44] + TEXTS[40:] + TWINS)
    captions = run.ledger.read("captions").to_pylist()
    assert {row["caption"]: row["row_count"] for row in captions} == expected
    assert [row["caption_id"] for row in captions] == sorted(map(caption_id, expected))


def test_groups_are_those_of_the_definition(run: Run) -> None:
    texts = [row["caption"] for row in content(run, "captions")]
    expected = dict(zip(map(caption_id, texts), caption_groups(texts), strict=True))
    found = {row["caption_id"]: row["caption_group"] for row in content(run, "caption_groups")}
    assert found == expected
    assert sorted(Counter(found.values()).values())[-2:] == [2, 8]


def test_no_cut_changes_a_table(run: Run, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_rows, "SLICE_ROWS", 24)
    monkeypatch.setattr(ingest, "BUCKET_ROWS", 10)
    monkeypatch.setattr(ingest, "PLAN_FILES", 1)
    monkeypatch.setattr(grouping, "KEY_ROWS", 100)
    other = ingested(dataset, tmp_path / "run")
    assert [len(other.ledger.parts(table)) for table in ("_slices", "rows", "captions", "_pairs")] == [6, 3, 7, 5]
    for table in TABLES:
        assert content(other, table) == content(run, table), table
    names = [name for name in other.ledger.parts("captions") for _ in range(other.ledger.rows("captions", name))]
    assert names == [name for name, part in other.ledger.each("caption_groups") for _ in range(len(part))]
    assert (
        grouping.known(other, CONTROL_CAPTIONS).to_pylist()
        == grouping.known(run, CONTROL_CAPTIONS).to_pylist()
        == [True, False, True]
    )


def test_a_sample_is_the_same_however_it_is_cut_and_the_rest_is_a_number(
    run: Run, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ingested(dataset, tmp_path / "one", "captions.sample=30")
    monkeypatch.setattr(input_rows, "SLICE_ROWS", 24)
    second = ingested(dataset, tmp_path / "two", "captions.sample=30")
    assert content(first, "rows") == content(second, "rows")
    assert first.manifest.data.accounting == Accounting(input_rows=65, sampled_out=35)
    places = {(row["file"], row["row"]) for row in content(first, "rows")}
    assert len(places) + sum(error["rows"] or 0 for error in content(first, "errors")) == 30
    assert places < {(row["file"], row["row"]) for row in content(run, "rows")}
    with pytest.raises(AuditError, match="captions.sample was 30 when this run began and is 31 now"):
        ingested(dataset, tmp_path / "one", "captions.sample=31")


def test_the_slices_are_in_the_manifest_and_a_changed_file_is_an_error(run: Run, dataset: Path) -> None:
    inputs = {Path(item.file).name: item.model_dump() for item in run.manifest.data.inputs}
    size = (dataset.parent / "in/2.jsonl").stat().st_size
    assert (inputs["2.jsonl"]["rows"], inputs["2.jsonl"]["slices"]) == (8, [[8, 0, size]])
    assert (inputs["0.parquet"]["rows"], inputs["0.parquet"]["slices"]) == (20, [[20, 0, 1]])
    assert (inputs["5.txt.gz"]["rows"], inputs["5.txt.gz"]["slices"]) == (None, [])
    path = dataset.parent / "in/4.txt"
    before = path.read_bytes()
    path.write_bytes(before + b"\nmore")
    try:
        with pytest.raises(AuditError, match="4.txt: has changed since this run began"):
            ingested(dataset, Path(run.config.out))
    finally:
        path.write_bytes(before)


def test_a_data_set_of_malformed_rows_alone_ends_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("caption,url\n" + "a,b,c\n" * 3)
    (tmp_path / "control_captions.txt").write_text("a river\n")
    config = write_config(
        tmp_path, captions="captions.csv", images=None, calibration={"captions": "control_captions.txt"}
    )
    with pytest.raises(AuditError, match='(?s)none of the 3 rows has a caption.*"from errors"'):
        ingested(config, tmp_path / "run")
