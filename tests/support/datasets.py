"""Provide fixtures that make a valid dataset and audit it. Expensive parts are computed once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import audit
from audit.embedding.descriptor import CopyDescriptor, DescriptorConfig
from pipelines.configuration.settings import load_config
from pipelines.runs.audit import run_audit
from tests.support.toy import (
    CONTROL_CAPTIONS,
    CONTROL_TWIN,
    MEMORIZED,
    MODEL,
    png,
    write_config,
    write_parquet,
    write_tar,
)

# A random descriptor finds all pictures similar. With floors this low, the control captions set the thresholds.
FLOORS = {"verbatim": 0.5, "region": 0.5}


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of a copy descriptor with random weights."""
    path = tmp_path_factory.mktemp("weights") / "sscd.safetensors"
    torch.manual_seed(0)
    CopyDescriptor(DescriptorConfig(image_size=32, channels=(8, 16), width=16)).save(path, FLOORS)
    return path


@pytest.fixture(scope="session")
def planted() -> bytes:
    """Return the image that the tiny model generates for MEMORIZED with seed 1.

    When it is placed among the training images, the model reproduces it.
    """
    model = audit.load_model(MODEL)
    return audit.generate(model, [MEMORIZED], seeds=[1], steps=2)["image"][0].as_py()


@pytest.fixture(scope="session")
def control_screen() -> pa.Table:
    """Return the screen table of CONTROL_CAPTIONS and CONTROL_TWIN."""
    return audit.screen(audit.load_model(MODEL), [*CONTROL_CAPTIONS, CONTROL_TWIN])


@pytest.fixture(scope="session")
def make_dataset(weights: Path, planted: bytes, control_screen: pa.Table) -> Callable[[Path], Path]:
    """Return a function that writes a valid dataset and its audit.yaml into a folder, and returns the audit.yaml.

    The dataset has 40 rows and 38 distinct captions, two of which occur twice.
    """

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
        (folder / "control_captions.txt").write_text("\n".join([*CONTROL_CAPTIONS, CONTROL_TWIN]), encoding="utf-8")
        # One row occurs twice, which must not count as another caption.
        pq.write_table(pa.concat_tables([control_screen, control_screen[:1]]), folder / "control_screen.parquet")
        (folder / "sscd.safetensors").write_bytes(weights.read_bytes())
        return write_config(folder)

    return make


@pytest.fixture(scope="session")
def audited() -> Callable[..., str]:
    """Return a function that runs an audit.yaml in this process, with Ray workers, and returns the path of the run."""

    def run(path: Path, *overrides: str, out: str | None = None) -> str:
        config, given = load_config(path, overrides, out)
        run_audit(config, given)
        return config.out

    return run
