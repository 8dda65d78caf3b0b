"""The label files that papers publish are read as they are, and every row is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.errors import AuditError, UsageError
from pipelines.reading.labels import read_labels
from tests.support.paths import ROOT


def test_one_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text('A cat\n\n"Quoted", with; signs\nA cat\n', "utf-8")
    found = read_labels(str(path))
    assert found.label_of == {"A cat": "memorized", '"Quoted", with; signs': "memorized"}
    assert (found.rows, found.empty, found.repeated, found.unlabelled) == (4, 1, 1, 0)


def test_json_lines_with_caption_index_and_url(tmp_path: Path) -> None:
    path = tmp_path / "memorized.jsonl"
    rows = [{"caption": f"caption {n}é", "index": 10 + n, "url": f"https://x.example/{n}"} for n in range(3)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    assert read_labels(str(path)).label_of == dict.fromkeys([row["caption"] for row in rows], "memorized")


def test_csv_with_semicolons_and_types(tmp_path: Path) -> None:
    path = tmp_path / "memorized.csv"
    path.write_text(
        ";Caption;URL;type;mean_sscd;max_sscd;Index\n"
        "0;A podcast;https://x.example/a.jpg;VM;0.83;0.84;1030\n"
        '1;"A ""quoted"" rug; grey";https://x.example/b.jpg;TM;0.19;0.2;2026\n',
        "utf-8",
    )
    assert read_labels(str(path)).label_of == {"A podcast": "verbatim", 'A "quoted" rug; grey': "partial"}


def test_parquet_with_overfit_types(tmp_path: Path) -> None:
    path = tmp_path / "groundtruth.parquet"
    types = {"a": "MV", "b": "RV", "c": "TV", "d": "N", "e": None}
    pq.write_table(pa.table({"caption": list(types), "overfit_type": list(types.values())}), path)
    found = read_labels(str(path))
    assert found.label_of == {"a": "verbatim", "b": "verbatim", "c": "partial", "d": "none"}
    assert (found.rows, found.unlabelled) == (5, 1)


def test_the_labels_of_the_demo() -> None:
    found = read_labels(str(ROOT / "pipelines/demo/bundle/labels.parquet"))
    counts = {label: list(found.label_of.values()).count(label) for label in set(found.label_of.values())}
    assert counts == {"ordinary": 1833, "none": 863, "partial": 190, "verbatim": 100, "near": 100}


def test_the_worst_label_of_a_caption_counts(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("caption,label\na,none\na,partial\nb,near\nb,near\n", "utf-8")
    found = read_labels(str(path))
    assert found.label_of == {"a": "partial", "b": "near"}
    assert (found.repeated, found.conflicting) == (2, 1)


def test_a_file_of_negatives_needs_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "negatives.csv"
    path.write_text(";Caption;type\n0;a;whatever\n", "utf-8")
    assert read_labels(str(path), "none").label_of == {"a": "none"}


@pytest.mark.parametrize(
    ("name", "content", "error", "said"),
    [
        ("a.csv", "caption,label\nx,verbatim\ny,maybe\n", UsageError, "row 1: unknown label 'maybe'"),
        ("a.csv", "name,label\nx,verbatim\n", UsageError, "no column holds captions"),
        ("a.jsonl", '{"caption": "x"}\n{"caption": 3}\n', AuditError, "row 1: 'caption' is int, not text"),
        ("a.xlsx", "x", UsageError, "no format of captions"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: str, error: type[AuditError], said: str
) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(error, match=said):
        read_labels(str(tmp_path / name))
