"""Rows are counted without reading the dataset: exactly where the files say it, else from a few beginnings."""

from __future__ import annotations

import gzip
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipelines.configuration.inputs import Captions
from pipelines.reading import counting
from pipelines.reading.counting import Count, count_captions, count_images
from pipelines.reading.files import find
from pipelines.reading.folders import gather
from tests.support.caption_files import as_csv, as_json, sample, write_lines
from tests.support.toy import png, write_parquet, write_tar

OPTIONS = Captions(path="", caption="caption")
DRAWN = random.Random(0)
TEXTS = [DRAWN.randbytes(DRAWN.randrange(150, 250)).hex() for _ in range(6000)]
LENGTH = sum(map(len, TEXTS)) / len(TEXTS)
WRITERS: dict[str, Callable[[Path, list[str]], None]] = {
    "txt": lambda path, texts: write_lines(path, [text.encode() for text in texts]),
    "jsonl": lambda path, texts: write_lines(path, as_json(texts)),
    "csv": lambda path, texts: path.write_bytes(as_csv(texts, ",")) and None,
    "tsv.gz": lambda path, texts: path.write_bytes(gzip.compress(as_csv(texts, "\t"))) and None,
    "jsonl.gz": lambda path, texts: write_lines(path, as_json(texts)),
    "tar": lambda path, texts: write_tar(path, sample(texts, "json")),
}


def counted(folder: Path, suffix: str) -> Count:
    return count_captions(find(str(folder / f"*.{suffix}"), "captions"), OPTIONS)


def test_parquet_says_it_exactly_whatever_its_row_groups(tmp_path: Path) -> None:
    for number, rows in enumerate((0, 1, 16, 33)):
        write_parquet(tmp_path / f"{number}.parquet", {"caption": pa.array(TEXTS[:rows], pa.string()), "x": [0] * rows})
    found = counted(tmp_path, "parquet")
    assert (found.files, found.rows, found.estimated, found.unreadable) == (4, 50, 0, 0)
    assert 0.5 * LENGTH < found.length < 2 * LENGTH


@pytest.mark.parametrize("suffix", WRITERS)
def test_small_files_are_counted_exactly(suffix: str, tmp_path: Path) -> None:
    for number in range(3):
        WRITERS[suffix](tmp_path / f"{number}.{suffix}", TEXTS[: 20 + number])
    found = counted(tmp_path, suffix)
    assert (found.rows, found.estimated) == (63, 0)
    assert found.length == sum(sum(map(len, TEXTS[: 20 + number])) for number in range(3)) / 63


@pytest.mark.parametrize("suffix", WRITERS)
def test_large_files_are_estimated_from_the_beginnings_of_a_few(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "LOOKED_BYTES", 1 << 19)
    monkeypatch.setattr(counting, "LOOKED_AT", 3)
    for number in range(2):
        WRITERS[suffix](tmp_path / f"{number}.{suffix}", TEXTS[: 3000 * (1 + number)])
        shutil.copy(tmp_path / f"{number}.{suffix}", tmp_path / f"{number + 2}.{suffix}")
    found = counted(tmp_path, suffix)
    assert (found.files, found.estimated, found.looked) == (4, 4, 3)
    assert abs(found.rows / 18_000 - 1) < 0.1
    assert abs(found.length / LENGTH - 1) < 0.1


def test_many_small_files_are_not_all_looked_at(tmp_path: Path) -> None:
    for number in range(20):
        WRITERS["txt"](tmp_path / f"{number:02d}.txt", TEXTS[number : number + 50])
    found = counted(tmp_path, "txt")
    assert (found.files, found.estimated, found.looked) == (20, 20, counting.LOOKED_AT)
    assert abs(found.rows / 1000 - 1) < 0.1


def test_what_cannot_be_read_counts_as_empty_and_is_told(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", {"caption": TEXTS[:10]})
    (tmp_path / "1.parquet").write_bytes(b"not Parquet")
    found = counted(tmp_path, "parquet")
    assert (found.rows, found.unreadable) == (10, 1)


def test_images_of_parquet_and_folders_are_counted_and_of_tars_estimated(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a/0.parquet", {"image": [png(1)] * 20})
    (tmp_path / "a/b").mkdir()
    for number in range(5):
        (tmp_path / f"a/b/{number}.png").write_bytes(png(number))
    write_tar(tmp_path / "a/1.tar", [(f"{number}.png", png(number)) for number in range(7)])
    files = gather(find(str(tmp_path / "a/**"), "images"))
    assert count_images(files, "image") == Count(files=3, rows=32)
    members = [(f"{number}.{suffix}", png(number % 50)) for number in range(300) for suffix in ("png", "txt")]
    write_tar(tmp_path / "a/1.tar", members)
    found = count_images(gather(find(str(tmp_path / "a/**"), "images")), "image")
    assert (found.estimated, found.looked) == (1, 1)
    assert abs((found.rows - 25) / 300 - 1) < 0.1
