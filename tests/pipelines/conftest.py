"""A data set small enough to audit in seconds: random images, random weights, and one image that is reproduced."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

import audit
from audit.embedding.descriptor import CopyDescriptor, DescriptorConfig
from pipelines.progress import Reporter
from pipelines.run import run_audit
from pipelines.settings import load_config

MODEL = Path(__file__).parents[1] / "data" / "tiny-sd1"
NULLS = [f"{thing} number {number}" for thing in ("lamp", "river", "coat") for number in range(40)]
MEMORIZED = "a planted picture"
# In the data set but for case and punctuation: no null caption.
NULL_TWIN = "Picture 3, of a thing!"


def png(seed: int, size: int = 32) -> bytes:
    """An image of its own for each seed: soft colours, no noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encode(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=16)


def settings_of(**changes: Any) -> dict[str, Any]:
    """The mapping of an audit.yaml; a change replaces a whole section."""
    settings: dict[str, Any] = {
        "model": str(MODEL),
        "captions": "captions/*.parquet",
        "images": "images/*.tar",
        "calibration": {"captions": "nulls.txt", "screen": "null_screen.parquet"},
        "select": {"budget": 5, "audit_sample": 25},
        "generate": {"seeds": [1], "steps": 2},
        "confirm": {
            "fresh_seeds": 2,
            "null_captions": 19,
            "null_rate": 0.05,
            "sscd": {"weights": "sscd.safetensors", "region": 0.9999},
        },
        "engine": {"workers": 1, "shard_rows": 16, "retries": 0},
        "out": "run",
    }
    return settings | changes


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump(settings_of(**changes)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy descriptor with random weights."""
    path = tmp_path_factory.mktemp("weights") / "sscd.safetensors"
    torch.manual_seed(0)
    CopyDescriptor(DescriptorConfig(image_size=32, channels=(8, 16), width=16)).save(path)
    return path


@pytest.fixture(scope="session")
def planted() -> bytes:
    """What the tiny model makes of MEMORIZED with seed 1: put among the training images, it is reproduced."""
    model = audit.load_model(MODEL)
    return audit.generate(model, [MEMORIZED], seeds=[1], steps=2)["image"][0].as_py()


@pytest.fixture(scope="session")
def null_screen() -> pa.Table:
    """The screen table of NULLS."""
    return audit.screen(audit.load_model(MODEL), [*NULLS, NULL_TWIN])


@pytest.fixture(scope="session")
def make_dataset(weights: Path, planted: bytes, null_screen: pa.Table) -> Callable[[Path], Path]:
    """Writes a sound data set of 40 rows and 38 captions, two of them twice, and its audit.yaml; returns that."""

    def make(folder: Path) -> Path:
        for shard in range(2):
            keys = [f"{shard}{row:04d}" for row in range(20)]
            captions = [f"picture {shard * 18 + row} of a thing" for row in range(20)]
            captions[0] = MEMORIZED if shard == 0 else captions[0]
            urls = [f"https://images.example/{key}" for key in keys]
            columns = {"caption": captions, "key": keys, "url": urls}
            write_parquet(folder / f"captions/{shard:05d}.parquet", columns)
            images = [png(shard * 100 + row) for row in range(20)]
            images[0] = planted if shard == 0 else images[0]
            members = [(f"{key}.png", image) for key, image in zip(keys, images, strict=True)]
            write_tar(folder / f"images/{shard:05d}.tar", members)
        (folder / "nulls.txt").write_text("\n".join([*NULLS, NULL_TWIN]), encoding="utf-8")
        pq.write_table(null_screen, folder / "null_screen.parquet")
        (folder / "sscd.safetensors").write_bytes(weights.read_bytes())
        return write_config(folder)

    return make


@pytest.fixture(scope="session")
def audited() -> Callable[..., str]:
    """Runs an audit.yaml in this process, with Ray workers; returns the run."""

    def run(path: Path, *overrides: str, out: str | None = None) -> str:
        config, given = load_config(path, overrides, out)
        run_audit(config, given, Reporter())
        return config.out

    return run
