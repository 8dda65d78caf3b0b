"""A folder of image files counts as one file of images."""

from __future__ import annotations

from pathlib import Path

from pipelines.reading.files import find
from pipelines.reading.folders import gather
from pipelines.reading.images import image_id, index, read
from tests.support.toy import png, write_tar


def test_image_files_count_by_folder_and_what_lies_beside_them_is_left_out(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "sub/c.webp", "a.txt", "b.json", ".hidden.png", "sub/._c.webp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    write_tar(tmp_path / "photos" / "sub" / "0.tar", [("a.png", png(1))])
    found = gather(find(str(tmp_path / "photos" / "**"), "images"))
    assert [(file.name, file.stem) for file in found] == [(".", "photos"), ("sub", "sub"), ("sub/0.tar", "0")]
    places, problem = index(found[0], "image")
    assert problem is None
    assert [(row["file"], row["row"], row["key"]) for row in places.to_pylist()] == [
        ("a.png", 0, "a"),
        ("b.JPG", 0, "b"),
    ]
    assert places["image_id"].to_pylist() == [image_id("a.png", 0), image_id("b.JPG", 0)]
    assert list(read(places, "image")) == [b"a.png", b"b.JPG"]
    places, _ = index(found[1], "image")
    assert [(row["file"], row["key"]) for row in places.to_pylist()] == [("sub/c.webp", "c")]
    # A folder stands for all that is below it.
    assert gather(find(str(tmp_path / "photos"), "images")) == found


def test_a_folder_is_another_when_a_name_or_a_size_is(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"one")

    def fingerprint() -> str:
        [folder] = gather(find(str(tmp_path), "images"))
        return folder.fingerprint()

    prints = {fingerprint()}
    (tmp_path / "b.png").write_bytes(b"two")
    prints.add(fingerprint())
    (tmp_path / "b.png").write_bytes(b"three")
    prints.add(fingerprint())
    (tmp_path / "b.png").rename(tmp_path / "c.png")
    prints.add(fingerprint())
    assert len(prints) == 4
    assert all(text.startswith("names+sizes:") for text in prints)
