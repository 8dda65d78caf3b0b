"""Images are found once and read by place, from tars and from Parquet."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pytest

from audit.errors import AuditError, UsageError
from pipelines.reading.files import find
from pipelines.reading.images import image_id, index, read, read_each
from tests.support.damage import corrupt
from tests.support.toy import png, write_parquet, write_tar


def test_an_image_id_is_the_hash_of_file_and_row() -> None:
    assert image_id("a/b.tar", 3) == hashlib.sha256(b"a/b.tar\x003").hexdigest()[:32]


def test_a_sample_of_a_tar_is_what_shares_a_name_and_its_image_comes_back(tmp_path: Path) -> None:
    members = [("a.txt", b"first"), ("a.png", png(1)), ("b.json", b"{}"), ("c.PNG", png(2)), ("c.webp", b"second one")]
    write_tar(tmp_path / "0.tar", members)
    [file] = find(str(tmp_path / "*.tar"), "images")
    places, problem = index(file, "image")
    assert problem is None
    # Sample b has no image, and counts all the same.
    assert [(row["key"], row["row"]) for row in places.to_pylist()] == [("a", 0), ("c", 2)]
    assert places["image_id"].to_pylist() == [image_id("0.tar", 0), image_id("0.tar", 2)]
    assert list(read(places, "image")) == [png(1), png(2)]
    assert list(read(places.slice(1, 1), "image")) == [png(2)]


def test_a_file_is_named_relative_to_the_folder_before_the_wildcard(tmp_path: Path) -> None:
    for name in ("x/0.tar", "y/0.tar"):
        write_tar(tmp_path / name, [("a.png", png(1))])
    assert [file.name for file in find(str(tmp_path / "*/0.tar"), "images")] == ["x/0.tar", "y/0.tar"]
    assert [file.name for file in find(str(tmp_path / "**/*.tar"), "images")] == ["x/0.tar", "y/0.tar"]
    assert [file.name for file in find([f"{tmp_path}/x/0.tar", f"{tmp_path}/y/0.tar"], "images")] == [
        "x/0.tar",
        "y/0.tar",
    ]


def test_a_tar_without_its_end_mark_says_so_after_what_it_has(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", png(1))])
    content = (tmp_path / "0.tar").read_bytes().rstrip(b"\0")
    (tmp_path / "0.tar").write_bytes(content + bytes(-len(content) % 512))
    [file] = find(str(tmp_path / "0.tar"), "images")
    places, problem = index(file, "image")
    assert len(places) == 1
    assert problem is not None
    assert "truncated" in problem


def test_what_is_no_tar_says_so(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"x" * 2000)
    [file] = find(str(tmp_path / "0.tar"), "images")
    places, problem = index(file, "image")
    assert len(places) == 0
    assert problem


@pytest.mark.parametrize("nested", [False, True], ids=["bytes", "struct"])
def test_parquet_gives_bytes_of_a_column_or_of_its_struct(tmp_path: Path, nested: bool) -> None:
    images = [png(row) for row in range(20)]
    column = [{"bytes": image, "path": None} for image in images] if nested else images
    write_parquet(tmp_path / "0.parquet", {"image": column, "key": [f"k{row}" for row in range(20)]})
    [file] = find(str(tmp_path / "0.parquet"), "images")
    places, problem = index(file, "image")
    assert problem is None
    assert places["row"].to_pylist() == list(range(20))
    assert list(read(places.slice(14, 4), "image")) == images[14:18]


def test_parquet_without_the_image_column_is_wrong_usage(tmp_path: Path) -> None:
    write_parquet(tmp_path / "0.parquet", {"picture": [b"x"]})
    [file] = find(str(tmp_path / "0.parquet"), "images")
    with pytest.raises(UsageError, match="no column 'image'; there is picture"):
        index(file, "image")


def test_an_image_of_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.reading.images.MOST_BYTES", 100)
    write_tar(tmp_path / "0.tar", [("a.png", bytes(101)), ("b.png", bytes(100))])
    [file] = find(str(tmp_path / "0.tar"), "images")
    assert list(read(index(file, "image")[0], "image")) == [None, bytes(100)]


def three_groups(path: Path, column: str) -> tuple[list[bytes], pa.Table, str | None]:
    """(48 images in three row groups, and what `index` says once a column of the second group is damaged)."""
    images = [png(row) for row in range(48)]
    write_parquet(path, {"image": images, "key": [f"k{row}" for row in range(48)]})
    corrupt(path, 1, column)
    [file] = find(str(path), "images")
    return images, *index(file, "image")


def test_a_damaged_row_group_costs_its_own_images_and_is_named(tmp_path: Path) -> None:
    images, places, problem = three_groups(tmp_path / "0.parquet", "image")
    assert problem is None
    assert len(places) == 48
    found = list(read_each(places, "image"))
    assert found[:16] == images[:16]
    assert found[32:] == images[32:]
    assert all(isinstance(lost, AuditError) and "0.parquet: row group 1: " in str(lost) for lost in found[16:32])
    with pytest.raises(AuditError, match=r"0.parquet: row group 1: "):
        list(read(places, "image"))


def test_keys_that_cannot_be_read_cost_their_row_group_and_no_other(tmp_path: Path) -> None:
    images, places, problem = three_groups(tmp_path / "0.parquet", "key")
    assert problem is not None
    assert "row group 1, 16 images: " in problem
    assert places["row"].to_pylist() == [*range(16), *range(32, 48)]
    assert list(read(places, "image")) == [*images[:16], *images[32:]]


def test_a_file_that_is_gone_costs_its_own_images(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        write_tar(tmp_path / name, [("a.png", png(1)), ("b.png", png(2))])
    places = pa.concat_tables([index(file, "image")[0] for file in find(str(tmp_path / "*.tar"), "images")])
    (tmp_path / "0.tar").unlink()
    found = list(read_each(places, "image"))
    assert ["no such file" in str(lost) for lost in found[:2]] == [True, True]
    assert found[2:] == [png(1), png(2)]
