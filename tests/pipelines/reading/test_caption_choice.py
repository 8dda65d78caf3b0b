"""The files that hold the captions of a dataset are chosen, unless two may hold the caption of one image."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from audit.errors import UsageError
from pipelines.configuration.inputs import Captions, Images
from pipelines.reading.caption_choice import choose_caption_files
from pipelines.reading.caption_files import Sidecar
from pipelines.reading.files import File


def chosen(*paths: str) -> list[File]:
    folders = [path.partition("/**")[0] for path in paths]
    return choose_caption_files(Captions(path=list(paths)), Images(path=folders))


def write(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a cat\n")
    return str(folder)


def proposals(error: UsageError) -> list[str]:
    """The values of `captions` that an error proposes."""
    return re.findall(r"captions: (\S+)", str(error))


def test_two_caption_files_of_one_image_are_refused_and_either_can_be_named(tmp_path: Path) -> None:
    folder = write(tmp_path, "1_x/a.png", "1_x/a.txt", "1_x/a.caption", "b.png", "b.txt")
    with pytest.raises(
        UsageError, match=r"1 images have two caption files, such as 1_x/a\.caption and 1_x/a\.txt"
    ) as e:
        chosen(folder)
    assert proposals(e.value) == [f"{folder}/**/*.txt", f"{folder}/**/*.caption"]
    for proposal, names in zip(proposals(e.value), (["1_x/a.txt", "b.txt"], ["1_x/a.caption"]), strict=True):
        files = chosen(proposal)
        assert [file.name for file in files] == names
        assert all(isinstance(file, Sidecar) for file in files)


def test_two_caption_files_of_one_image_are_refused_in_globs_too(tmp_path: Path) -> None:
    folder = write(tmp_path, "a.png", "a.txt", "a.caption")
    with pytest.raises(UsageError, match="Name only files of one kind"):
        chosen(f"{folder}/**/*.txt", f"{folder}/**/*.caption")


def test_either_suffix_may_be_used_by_different_images(tmp_path: Path) -> None:
    folder = write(tmp_path, "a.png", "a.txt", "b.png", "b.caption", "x/a.png", "x/a.caption")
    assert [file.name for file in chosen(folder)] == ["a.txt", "b.caption", "x/a.caption"]


@pytest.mark.parametrize("metadata", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
@pytest.mark.parametrize("suffix", [".txt", ".caption"])
def test_metadata_together_with_captions_beside_images_is_refused(metadata: str, suffix: str, tmp_path: Path) -> None:
    folder = write(tmp_path, f"old/{metadata}", "a.png", f"a{suffix}", "b.png", f"b{suffix}")
    with pytest.raises(UsageError, match=rf"has both old/{metadata} and 2 caption files .* such as a{suffix}") as error:
        chosen(folder)
    assert proposals(error.value) == [f"{folder}/**/{metadata}", f"{folder}/**/*{suffix}"]
    assert [file.name for file in chosen(f"{folder}/**/{metadata}")] == [f"old/{metadata}"]
    assert [file.name for file in chosen(f"{folder}/**/*{suffix}")] == [f"a{suffix}", f"b{suffix}"]


def test_metadata_is_read_where_text_files_lie_beside_no_image(tmp_path: Path) -> None:
    folder = write(tmp_path, "metadata.jsonl", "README.txt", "images/a.png", "images/LICENSE.txt", "a.txt")
    assert [file.name for file in chosen(folder)] == ["metadata.jsonl"]
