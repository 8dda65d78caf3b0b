"""Embed: what of a dataset becomes a vector, in which order, and what becomes a row of `errors`."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from threading import Semaphore
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from audit.embedding.embedder import Embedder
from audit.embedding.loading import load_embedder
from audit.images.decoding import decode
from audit.record.ledger import Ledger, Shard, Tables, concat, slices
from audit.search.exact import vectors_of
from pipelines.configuration.config import Config
from pipelines.configuration.settings import load_config
from pipelines.engine.worker import Worker
from pipelines.reading import input_files
from pipelines.stages import embed
from pipelines.steps import image_list, image_vectors
from pipelines.tables import training_images
from tests.support.damage import corrupt
from tests.support.toy import encode, png, write_config, write_parquet, write_tar


@pytest.fixture
def embedder(weights: Path) -> Embedder:
    return load_embedder("sscd", weights)


def config_of(folder: Path, weights: Path, images: Any, **engine: int) -> Config:
    path = write_config(folder, images=images, confirm={"sscd": {"weights": str(weights)}}, engine=engine)
    return load_config(path)[0]


def embedded(config: Config) -> Tables:
    """The tables of all shards, worked in this process."""
    worker, ledger = Worker(config), Ledger(config.out)
    assert config.images is not None
    for number, file in enumerate(input_files.find_images(config)):
        ledger.commit(f"{number:05d}", image_list._list(worker, Shard("", file, 0, 1), config.images.column))
    shards: list[Shard] = []
    for name in ledger.parts(training_images.IMAGES):
        shards += slices(name, name, ledger.rows(training_images.IMAGES, name), config.engine.shard_rows)
    return concat([embed._embed(worker, shard) for shard in shards])


def odd_images() -> dict[str, bytes]:
    """Images with everything that a dataset has: those that can be read come first."""

    def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    picture = decode(png(1))
    exif = Image.Exif()
    exif[0x0112] = 6
    huge = Image.new("1", (10_000, 9_000))
    return {
        "a-cmyk.jpg": saved(picture.convert("CMYK"), "JPEG"),
        "b-deep.png": saved(Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) << 8)),
        "c-one.png": saved(Image.new("RGB", (1, 1), "red")),
        "d-palette.png": saved(picture.quantize(8), transparency=0),
        "e-turned.jpg": saved(picture, "JPEG", exif=exif),
        "f-moving.gif": saved(picture, "GIF", save_all=True, append_images=[decode(png(2))]),
        "x-cut.jpg": saved(decode(png(3, 200)), "JPEG")[:900],
        "y-text.png": b"not an image",
        "z-bomb.png": saved(huge),
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("container", ["folder", "tar"])
def test_odd_images_are_cropped_rgb_or_rows_of_errors(
    container: str, tmp_path: Path, weights: Path, embedder: Embedder
) -> None:
    stripes = Image.fromarray(np.tile(np.uint8(range(96)), (32, 3)).reshape(32, 96, 3))
    images = odd_images() | {"wide.png": encode(stripes)}
    (tmp_path / "images").mkdir()
    for name, content in images.items():
        (tmp_path / "images" / name).write_bytes(content)
    (tmp_path / "images" / "a-cmyk.txt").write_text("a caption beside its image is none")
    write_tar(tmp_path / "images.tar", sorted(images.items()))
    path = str(tmp_path / "images") + (".tar" if container == "tar" else "")
    tables = embedded(config_of(tmp_path, weights, {"path": path, "crop": "centre"}))
    bad = {"x-cut.jpg", "y-text.png", "z-bomb.png"}
    readable = [name for name in sorted(images) if name not in bad]
    errors = {(row["file"], row["row"]): row["message"] for row in tables["errors"].to_pylist()}
    places = {name: (name, 0) for name in images}
    if container == "tar":
        places = {name: ("images.tar", row) for row, name in enumerate(sorted(images))}
    assert sorted(errors) == sorted(places[name] for name in bad)
    assert "DecompressionBombError: 10000 x 9000 pixels" in errors[places["z-bomb.png"]]
    table = tables["embeddings_sscd"]
    assert table["key"].to_pylist() == [Path(name).stem for name in readable]
    assert [(row["file"], row["row"]) for row in table.to_pylist()] == [places[name] for name in readable]
    wanted = embedder.embed([decode(images[name], "centre") for name in readable])
    assert vectors_of(table["vector"]) == pytest.approx(wanted, abs=1e-3)
    whole = embedder.embed([decode(images["wide.png"])])[0]
    assert np.abs(vectors_of(table["vector"])[-1] - whole).max() > 1e-3


def test_vectors_do_not_depend_on_how_images_are_cut_into_shards_and_batches(
    tmp_path: Path, weights: Path, embedder: Embedder
) -> None:
    """Over three batches of 64 with unreadable images among them, and in shards of 10."""
    members = [(f"{n:04d}.png", b"none" if n % 7 == 0 else png(n)) for n in range(150)]
    write_tar(tmp_path / "many.tar", members)
    readable = [n for n in range(150) if n % 7]
    wanted = embedder.embed([decode(png(n)) for n in readable])
    for engine in ({"shard_rows": 1024, "cpus_per_worker": 2}, {"shard_rows": 10}):
        tables = embedded(config_of(tmp_path, weights, f"{tmp_path}/many.tar", **engine))
        table = tables["embeddings_sscd"]
        assert table["row"].to_pylist() == readable
        assert vectors_of(table["vector"]) == pytest.approx(wanted, abs=1e-3)
        assert tables["errors"]["row"].to_pylist() == list(range(0, 150, 7))


def test_the_next_batch_is_decoded_while_the_embedder_works(tmp_path: Path, weights: Path) -> None:
    """The embedder waits here until images of the batch after its own have been prepared."""
    write_tar(tmp_path / "many.tar", [(f"{n:04d}.png", png(n)) for n in range(3 * image_vectors.BATCH)])
    config = config_of(tmp_path, weights, f"{tmp_path}/many.tar")
    worker, prepared, waited = Worker(config), Semaphore(0), []
    real = worker.embedder("sscd")

    def preprocess(image: Image.Image) -> Tensor:
        prepared.release()
        return real.preprocess(image)

    def encode_later(batch: Tensor) -> Tensor:
        # Its own images, and one more unless it is the last batch.
        more = len(waited) < 2
        waited.append(all(prepared.acquire(timeout=60) for _ in range(len(batch) + more)))
        if more:
            prepared.release()
        return real.encode(batch)

    worker._embedders["sscd"] = replace(real, preprocess=preprocess, encode=encode_later)
    ledger = Ledger(config.out)
    [file] = input_files.find_images(config)
    ledger.commit("00000", image_list._list(worker, Shard("", file, 0, 1), "image"))
    tables = embed._embed(worker, Shard("", "00000", 0, 3 * image_vectors.BATCH))
    assert waited == [True] * 3
    assert len(tables["embeddings_sscd"]) == 3 * image_vectors.BATCH


def test_a_damaged_parquet_file_gives_errors_that_name_its_row_group_and_the_rest_is_embedded(
    tmp_path: Path, weights: Path
) -> None:
    """More images are lost than single rows may fail in a row; none of them is tried again."""
    for name in ("0", "1"):
        write_parquet(tmp_path / f"{name}.parquet", {"image": [png(n) for n in range(48)]})
    for group in (0, 1):
        corrupt(tmp_path / "0.parquet", group, "image")
    tables = embedded(config_of(tmp_path, weights, f"{tmp_path}/*.parquet", shard_rows=1024))
    rows = [(row["file"], row["row"]) for row in tables["embeddings_sscd"].to_pylist()]
    assert rows == [*(("0.parquet", n) for n in range(32, 48)), *(("1.parquet", n) for n in range(48))]
    errors = tables["errors"].to_pylist()
    assert [(e["file"], e["row"], e["rows"], e["kind"]) for e in errors] == [
        ("0.parquet", n, 1, "unreadable_image") for n in range(32)
    ]
    assert [e["message"].partition(":")[0] for e in errors] == ["row group 0"] * 16 + ["row group 1"] * 16
