"""What an audit of captions beside images does not read is counted and said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.configuration.settings import load_config
from pipelines.reading import input_files
from pipelines.stages import ingest
from tests.support.serial import serial
from tests.support.toy import png, write_config

CAPTIONED = {"1_x/a": "a cat\n", "1_x/b": "a dog\n\n  \n", "2_y/c": "a fox\na red fox\n", "2_y/d": "an owl\ra bat"}


def kohya(folder: Path, bare: int = 0) -> Path:
    """Write four images with captions, and so many without; return the folder."""
    for number, (stem, text) in enumerate(CAPTIONED.items()):
        place = folder / "train" / stem
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".png").write_bytes(png(number))
        place.with_suffix(".txt").write_bytes(text.encode())
    for number in range(bare):
        (folder / "train/bare").mkdir(exist_ok=True)
        (folder / f"train/bare/{number}.png").write_bytes(png(100 + number))
    (folder / "controls.txt").write_text("a river\n")
    (folder / "sscd.safetensors").write_bytes(b"")
    return folder


def accounted(folder: Path, captions: Any, images: str | None = "train/") -> dict[str, Any]:
    config = write_config(folder, captions=captions, images=images, calibration={"captions": "controls.txt"})
    run = serial(load_config(config, (), str(folder / "run"))[0])
    inputs = input_files.find_inputs(run.config)
    run.manifest.inputs(input_files.fingerprints(run.config, inputs))
    ingest.run(run, inputs)
    assert sorted(run.ledger.read("captions")["caption"].to_pylist()) == ["a cat", "a dog", "a fox", "an owl"]
    return run.manifest.data.accounting.model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("captions", "images"),
    [("train/", "train/"), ("train/**/*.txt", "train/"), ("train/", None), ("train/**/*.txt", None)],
)
def test_files_of_several_lines_are_counted_and_said(
    captions: str, images: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blank lines are none; a lone carriage return ends a line, as for Python's text files."""
    found = accounted(kohya(tmp_path), captions, images)["sidecars"]
    assert found == {
        "caption_files": 4,
        "with_more_lines": 2,
        "images": 4,
        "images_without_caption": 0,
        "examples": [],
    }
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("2 of 4 caption files beside images have more than one line; only the first is audited") == 1
    assert "have no caption file" not in said


@pytest.mark.parametrize("images", ["train/", None])
def test_images_without_a_caption_file_are_counted_and_said(
    images: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = accounted(kohya(tmp_path, bare=4), "train/", images)["sidecars"]
    names = ["bare/0.png", "bare/1.png", "bare/2.png"]
    assert (found["images"], found["images_without_caption"], found["examples"]) == (8, 4, names)
    said = " ".join(capsys.readouterr().err.split())
    assert (
        said.count(f"4 of 8 images have no caption file of their own and give no row, such as {', '.join(names)}") == 1
    )


def test_the_second_image_of_a_stem_has_no_caption_of_its_own(tmp_path: Path) -> None:
    kohya(tmp_path)
    (tmp_path / "train/1_x/a.webp").write_bytes(png(9))
    found = accounted(tmp_path, "train/")["sidecars"]
    assert (found["images_without_caption"], found["examples"]) == (1, ["1_x/a.webp"])


def test_images_that_other_caption_files_name_are_not_counted(tmp_path: Path) -> None:
    kohya(tmp_path)
    (tmp_path / "train/other").mkdir()
    (tmp_path / "train/other/0.png").write_bytes(png(9))
    (tmp_path / "train/other/metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "caption": "a cat"}))
    accounting = accounted(tmp_path, ["train/**/*.txt", "train/other/metadata.jsonl"])
    assert accounting["sidecars"]["images"] == 4
    assert accounting["sidecars"]["images_without_caption"] == 0
    assert accounting["pairs"]["paired"] == 5


def test_nothing_is_recorded_without_captions_beside_images(tmp_path: Path) -> None:
    kohya(tmp_path)
    (tmp_path / "list.txt").write_text("a cat\na dog\na fox\nan owl\n")
    assert "sidecars" not in accounted(tmp_path, "list.txt")
