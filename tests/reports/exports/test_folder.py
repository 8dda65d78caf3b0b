from __future__ import annotations

import hashlib
from pathlib import Path

import fsspec
import pytest

from audit.errors import UsageError
from reports.exports.folder import publish
from reports.exports.formats import FORMATS
from reports.exports.redaction import redacted
from reports.record.model import Record

NAMES = {"index.html", "record.json", "cases.csv", "SHA256SUMS"}


@pytest.fixture(scope="module")
def small(record: Record) -> Record:
    """A record with one case and without figures, which take most of the time."""
    return record.model_copy(update={"cases": record.cases[:1], "histograms": {}})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_has_the_report_the_record_the_captions_and_their_checksums(small: Record, tmp_path: Path) -> None:
    assert set(publish(small, str(tmp_path / "public"))) == NAMES
    found = files(tmp_path / "public")
    assert set(found) == NAMES
    assert found["index.html"] == FORMATS["html"](small)
    assert found["record.json"] == FORMATS["json"](small)
    assert found["cases.csv"] == FORMATS["csv"](small)
    for line in found["SHA256SUMS"].decode().splitlines():
        checksum, name = line.split("  ")
        assert hashlib.sha256(found[name]).hexdigest() == checksum


def test_what_was_published_is_replaced(small: Record, tmp_path: Path) -> None:
    publish(small, str(tmp_path))
    publish(redacted(small), str(tmp_path))
    assert b"data:image" not in b"".join(files(tmp_path).values())


@pytest.mark.parametrize("name", ["index.html", "notes.txt", "deep/notes.txt"])
def test_a_folder_with_other_files_is_refused_and_left_alone(small: Record, tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="did not write"):
        publish(small, str(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]


def test_a_published_file_that_somebody_changed_is_kept(small: Record, tmp_path: Path) -> None:
    publish(small, str(tmp_path))
    (tmp_path / "index.html").write_text("edited")
    with pytest.raises(UsageError, match=r"changed after it was published: index.html"):
        publish(small, str(tmp_path))
    assert (tmp_path / "index.html").read_text() == "edited"


def test_a_file_is_no_folder(small: Record, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        publish(small, str(tmp_path / "file"))


def test_a_folder_may_be_remote(small: Record) -> None:
    for _ in range(2):
        publish(small, "memory://published/here")
    assert {path.rpartition("/")[2] for path in fsspec.filesystem("memory").find("/published/here")} == NAMES


def test_training_images_are_blurred_unless_the_run_shows_them(record: Record) -> None:
    assert not record.run.shows_training_images
    shown = [case.training for case in record.cases if case.training]
    assert shown
    assert all(picture.blurred for picture in shown)
