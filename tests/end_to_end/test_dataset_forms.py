"""The forms in which people keep captions and images: every row finds its own image."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.record.manifest_entries import PairCounts
from tests.support.ingested import ingested
from tests.support.toy import png, write_config, write_parquet, write_tar

pytestmark = pytest.mark.slow

ROWS = 4
TEXTS = [f"a thing number {row}" for row in range(ROWS)]
Keys = dict[str, Any]


def kohya(folder: Path, suffix: str = ".txt") -> Keys:
    """Subfolders of images, each beside a text file, whose further lines a trainer does not read."""
    for row, text in enumerate(TEXTS):
        place = folder / f"train/{row % 2 + 1}_thing"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row}.png").write_bytes(png(row))
        (place / f"{row}{suffix}").write_text(f"\ufeff {text} \nanother line\n", encoding="utf-8")
    return {"captions": "train/", "images": "train/"}


def imagefolder(folder: Path, kind: str) -> Keys:
    place = folder / "train/images"
    place.mkdir(parents=True)
    for row in range(ROWS):
        (place / f"{row}.png").write_bytes(png(row))
    rows = [{"file_name": f"images/{row}.png", "text": text} for row, text in enumerate(TEXTS)]
    metadata = folder / f"train/metadata.{kind}"
    if kind == "jsonl":
        metadata.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), metadata)
    else:
        with metadata.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(rows)
    return {"captions": "train", "images": "train"}


def datasets(folder: Path) -> Keys:
    """What `datasets` writes: the bytes and the path of an image in one struct, beside its text."""
    images = [{"bytes": png(row), "path": f"{row}.png"} for row in range(ROWS)]
    write_parquet(folder / "data/train-00000-of-00001.parquet", {"image": images, "text": TEXTS})
    return {"captions": "data/*.parquet", "images": "data/*.parquet"}


def tars(folder: Path, place: str = "shards", first: int = 0) -> Keys:
    """What img2dataset writes: tars of images and texts, and statistics."""
    members = []
    for row, text in enumerate(TEXTS, first):
        members += [(f"{row:05d}.jpg", png(row)), (f"{row:05d}.txt", text.encode())]
    write_tar(folder / place / "00000.tar", members)
    (folder / place / "00000_stats.json").write_text("{}")
    return {"captions": place, "images": place}


def tars_and_parquet(folder: Path) -> Keys:
    tars(folder)
    keys = [f"{row:05d}" for row in range(ROWS)]
    write_parquet(folder / "shards/00000.parquet", {"caption": TEXTS, "key": keys, "status": ["success"] * ROWS})
    return {"captions": "shards", "images": "shards"}


def two_folders(folder: Path) -> Keys:
    """Two datasets whose shards and keys have the same names."""
    for place in ("first", "second"):
        tars(folder, place, first=0)
    return {"captions": ["first", "second"], "images": ["first", "second"]}


FORMS: dict[str, tuple[Callable[[Path], Keys], int]] = {
    "kohya": (kohya, ROWS),
    "kohya with .caption": (lambda folder: kohya(folder, ".caption"), ROWS),
    "imagefolder, JSON lines": (lambda folder: imagefolder(folder, "jsonl"), ROWS),
    "imagefolder, CSV": (lambda folder: imagefolder(folder, "csv"), ROWS),
    "imagefolder, Parquet": (lambda folder: imagefolder(folder, "parquet"), ROWS),
    "datasets": (datasets, ROWS),
    "img2dataset": (tars, ROWS),
    "img2dataset with Parquet": (tars_and_parquet, ROWS),
    "two img2dataset folders": (two_folders, 2 * ROWS),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_row_is_paired_with_its_own_image(form: str, tmp_path: Path) -> None:
    make, rows = FORMS[form]
    keys = make(tmp_path)
    (tmp_path / "control_captions.txt").write_text("a river\n")
    (tmp_path / "sscd.safetensors").write_bytes(b"")
    run = ingested(write_config(tmp_path, calibration={"captions": "control_captions.txt"}, **keys), tmp_path / "run")
    assert run.manifest.data.accounting.pairs == PairCounts(rows=rows, paired=rows, applies=True)
    assert sorted(run.ledger.read("captions")["caption"].to_pylist()) == sorted(TEXTS)
    assert not run.ledger.parts("errors") or not len(run.ledger.read("errors"))


def test_lines_of_text_name_no_image(tmp_path: Path) -> None:
    kohya(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(TEXTS))
    (tmp_path / "control_captions.txt").write_text("a river\n")
    (tmp_path / "sscd.safetensors").write_bytes(b"")
    path = write_config(
        tmp_path, captions="prompts.txt", images="train", calibration={"captions": "control_captions.txt"}
    )
    run = ingested(path, tmp_path / "run")
    assert run.manifest.data.accounting.pairs == PairCounts(rows=ROWS, paired=0, applies=False)
