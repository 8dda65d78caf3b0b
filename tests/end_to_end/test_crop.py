"""The crop that training used holds wherever a training image is compared: as a whole, by region, as evidence."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from audit import schema
from audit.images.decoding import UPRIGHT, centre, decode
from audit.record.ledger import Ledger, Shard
from audit.verdicts.regions import region_png
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest, new
from pipelines.engine.worker import Worker
from pipelines.reading import input_files
from pipelines.stages import confirm, embed, judge
from pipelines.steps import image_list
from pipelines.tables import training_images
from tests.support.toy import encode, write_config, write_tar


def wide(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((96, 32), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("crop", ["none", "centre"])
def test_a_generation_of_the_centre_is_a_copy_if_training_cropped(crop: str, tmp_path: Path, weights: Path) -> None:
    write_tar(tmp_path / "0.tar", [(f"{n}.png", encode(wide(n))) for n in range(4)])
    images = {"path": str(tmp_path / "0.tar"), "crop": crop}
    config, _ = load_config(write_config(tmp_path, images=images, confirm={"sscd": {"weights": str(weights)}}))
    ledger, worker = Ledger(config.out), Worker(config)
    [file] = input_files.find_images(config)
    ledger.commit("00000", image_list._list(worker, Shard("", file, 0, 1), "image"))
    ledger.commit("00000", embed._embed(worker, Shard("00000", "00000", 0, 4)))
    generation = {"caption_id": "a", "purpose": "discover", "seed": 1, "status": "ok"}
    generation |= {"image": encode(centre(wide(2))), "region": region_png(np.ones((8, 8), bool))}
    ledger.write("generations", "discover-00000", pa.Table.from_pylist([generation], schema=schema.generations(())))
    [shard] = confirm._shards(ledger, "discover", 10)
    best = confirm._nearest(worker, shard)["matches"].to_pylist()[0]
    exact = best["similarity"] > 0.9999 and best["region_similarity"] > 0.9999
    assert exact == (crop == "centre")

    own = ledger.read(training_images.IMAGES)["image_id"][2].as_py()
    verdict = {"caption_id": "a", "caption": "a", "verdict": "verbatim", "image_id": own}
    run = Run(config, ledger, Manifest(ledger, new(config, {})), Reporter())
    verdicts = pa.Table.from_pylist([verdict], schema=schema.VERDICTS)
    copied = pa.Table.from_pylist([{"image_id": own, "orientation": UPRIGHT}], schema=schema.COPIED_IMAGES)
    [evidence] = judge._evidence(run, verdicts, copied).to_pylist()
    wanted = decode(encode(wide(2)), crop)
    assert (np.asarray(Image.open(io.BytesIO(evidence["image"]))) == np.asarray(wanted)).all()
