"""A text file beside an image of the same stem is its caption: the first line, as kohya's trainers read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.configuration.inputs import Captions
from pipelines.reading import captions as captions_of
from pipelines.reading.caption_files import Sidecar, has_more_lines, with_sidecars
from pipelines.reading.files import find
from pipelines.reading.slices import LONGEST


def sidecar(folder: Path, content: bytes, name: str = "a.txt") -> Sidecar:
    (folder / "a.png").touch()
    (folder / name).write_bytes(content)
    files = find(str(folder), "captions")
    [file] = [file for file in with_sidecars(files, files) if isinstance(file, Sidecar)]
    return file


@pytest.mark.parametrize("name", ["a.txt", "a.caption"])
@pytest.mark.parametrize(
    "content", [b"a cat", b"a cat\n", b"\xef\xbb\xbf a cat \r\nanother line\r\n", b"a cat\ranother line\r"]
)
def test_the_first_line_is_the_caption_of_the_image(content: bytes, name: str, tmp_path: Path) -> None:
    captions = Captions(path=str(tmp_path))
    [part], problems = captions_of.plan(sidecar(tmp_path, content, name), captions)
    table, errors = captions_of.read(part, 0, 1, captions)
    assert table.select(["caption", "row", "key"]).to_pylist() == [{"caption": "a cat", "row": 0, "key": "a.png"}]
    assert problems == errors == []


@pytest.mark.parametrize(
    ("content", "kind"), [(b"", "empty_line"), (b" \na cat", "empty_line"), (b"a" * (LONGEST + 1), "too_long")]
)
def test_a_file_without_a_caption_is_an_error_row(content: bytes, kind: str, tmp_path: Path) -> None:
    captions = Captions(path=str(tmp_path))
    [part], _ = captions_of.plan(sidecar(tmp_path, content), captions)
    table, [error] = captions_of.read(part, 0, 1, captions)
    assert len(table) == 0
    assert (error["kind"], error["row"], error["rows"]) == (kind, 0, 1)


def test_a_text_without_an_image_beside_it_is_a_list_of_captions(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/a.png", "a.txt", "b.txt"):
        (tmp_path / name).touch()
    files = find(str(tmp_path), "captions")
    assert with_sidecars(files, files) == files


def test_of_several_images_of_one_stem_the_first_by_name_has_the_caption(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert sidecar(tmp_path, b"a cat").image == "a.jpg"


@pytest.mark.parametrize(
    ("content", "more"),
    [
        (b"", False),
        (b"a cat", False),
        (b"a cat\r\n\n \r\n", False),
        (b"a cat\na dog", True),
        (b"a cat\r\n\r\na dog\r\n", True),
        (b"a cat\ra dog", True),
        (b"\na cat", True),
        (b"a cat\n" + b"a" * (LONGEST + 1), True),
        ("a cat\na dog".encode("utf-16"), False),
    ],
)
def test_lines_after_the_first_are_seen_unless_they_are_blank(content: bytes, more: bool, tmp_path: Path) -> None:
    """Text in another encoding is an error when it is read; its lines are not counted."""
    [part], problems = captions_of.plan(sidecar(tmp_path, content), Captions(path=str(tmp_path)))
    assert (has_more_lines(part), part.rows, problems) == (more, 1, [])
