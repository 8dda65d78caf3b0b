"""The bundle of the demo holds what its README says, and diffusers runs its model as we do."""

from __future__ import annotations

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

import audit
from audit.models.noise import initial_latent
from benchmarks.planted.artwork import LOOKALIKE_RMS
from benchmarks.planted.evaluate import pictures
from pipelines.demo.demo import bundle

SHIPPED = 30 * 2**20
COPIES = {"verbatim": {160}, "partial": {10}, "ordinary": {1}, "near": {1}, "none": {1}}


@pytest.fixture(scope="module")
def folder() -> Path:
    return bundle()


@pytest.fixture(scope="module")
def labels(folder: Path) -> list[dict[str, str | None]]:
    rows: list[dict[str, str | None]] = pq.read_table(folder / "labels.parquet").to_pylist()
    return rows


def test_it_is_small_and_holds_no_pickle(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= SHIPPED
    assert not {file.suffix for file in files} & {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


def test_every_kind_of_caption_is_there_in_number(folder: Path, labels: list[dict[str, str | None]]) -> None:
    counts = Counter(row["label"] for row in labels)
    assert counts["verbatim"] >= 100
    assert len({row["family"] for row in labels if row["label"] == "partial"}) >= 10
    calibration = (folder / "calibration.txt").read_text().splitlines()
    assert len(calibration) >= 1900
    assert counts["none"] >= 500
    assert counts["none"] + len(calibration) >= 2700


def test_every_row_has_an_image_and_rows_never_trained_on_have_one_of_their_own(
    folder: Path, labels: list[dict[str, str | None]]
) -> None:
    rows = pq.read_table(folder / "captions.parquet").to_pylist()
    label_of = {row["caption"]: row for row in labels}
    assert {row["caption"] for row in rows} == set(label_of)
    assert len(label_of) == len(labels)
    assert all(row["image_key"] is None for row in labels if row["label"] == "none")
    training = {row["image_key"] for row in labels} - {None}
    held_out = {row["key"] for row in rows if label_of[row["caption"]]["label"] == "none"}
    assert all(row["key"] == label_of[row["caption"]]["image_key"] for row in rows if row["key"] not in held_out)
    assert not training & held_out
    assert training | held_out == set(keys_of(folder))


def test_no_two_images_have_the_same_key(folder: Path) -> None:
    keys = keys_of(folder)
    assert len(set(keys)) == len(keys)


def keys_of(folder: Path) -> list[str]:
    keys = []
    for tar in sorted((folder / "images").glob("*.tar")):
        with tarfile.open(tar) as members:
            keys += [Path(name).stem for name in members.getnames()]
    return keys


def test_images_held_out_are_no_look_alikes_of_training_images(
    folder: Path, labels: list[dict[str, str | None]]
) -> None:
    images, training = pictures(folder), {row["image_key"] for row in labels}
    pixels_TD = np.stack([small(image) for key, image in images.items() if key in training])
    pixels_HD = np.stack([small(image) for key, image in images.items() if key not in training])
    assert len(pixels_HD) >= 100
    squares_HT = np.square(pixels_HD).sum(1)[:, None] + np.square(pixels_TD).sum(1) - 2 * pixels_HD @ pixels_TD.T
    assert np.sqrt(squares_HT.min() / pixels_HD.shape[1]) >= LOOKALIKE_RMS


def small(image: np.ndarray) -> np.ndarray:
    """Return the pixels of an image at 32 px."""
    return image.reshape(32, 2, 32, 2, 3).mean((1, 3), np.float64).ravel()


def test_control_captions_are_not_in_the_data_set(folder: Path, labels: list[dict[str, str | None]]) -> None:
    control = set((folder / "calibration.txt").read_text().splitlines())
    assert not control & {row["caption"] for row in labels}


def test_planted_captions_repeat_and_ordinary_ones_do_not(folder: Path, labels: list[dict[str, str | None]]) -> None:
    copies = Counter(pq.read_table(folder / "captions.parquet")["caption"].to_pylist())
    repeats = {label: {copies[row["caption"]] for row in labels if row["label"] == label} for label in COPIES}
    assert repeats == COPIES


def test_diffusers_gives_the_same_latents(folder: Path, labels: list[dict[str, str | None]]) -> None:
    model = audit.load_model(folder / "model")
    captions = [str(row["caption"]) for row in labels[:2]]
    table = audit.generate(model, captions, seeds=[1], steps=4, guidance_scale=4, output="latents")
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "model", torch_dtype=torch.float32)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    noise = initial_latent(1, model.latent_shape).expand(2, -1, -1, -1)
    theirs = pipeline(
        captions, latents=noise, num_inference_steps=4, guidance_scale=4, output_type="latent"
    ).images.numpy()
    np.testing.assert_allclose(np.array(table["latents"].to_pylist()), theirs.reshape(2, -1), atol=2e-4, rtol=0)


@pytest.mark.slow
def test_the_screen_of_the_control_captions_is_what_the_model_gives(folder: Path) -> None:
    shipped = pq.read_table(folder / "control_screen.parquet")
    captions = (folder / "calibration.txt").read_text().splitlines()
    assert shipped["caption"].to_pylist() == captions
    # Every fortieth caption, because all of them take minutes.
    shipped = shipped.take(list(range(0, len(captions), 40)))
    again = audit.screen(audit.load_model(folder / "model"), captions[::40], batch_size=64)
    assert again.schema.equals(shipped.schema)
    assert again.schema.metadata == shipped.schema.metadata
    again, shipped = (table["caption_response"].to_numpy() for table in (again, shipped))
    np.testing.assert_allclose(again, shipped, atol=1e-4, rtol=0)
