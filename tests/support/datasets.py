"""Provide a valid dataset and a finished run of it, each made once for all tests.

Torch and the engine are imported by the functions that need them: with xdist, the process that hands out the tests
loads this module, too, and the others wait for it.
"""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import audit
from tests.support.shared import shared
from tests.support.toy import (
    CONTROL_CAPTIONS,
    CONTROL_TWIN,
    FEW,
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
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a valid dataset with its audit.yaml. It is made once, so tests must not change it.

    The dataset has 40 rows and 38 distinct captions, two of which occur twice.
    """
    return shared(tmp_path_factory, "toy", _write_dataset)


def _write_dataset(folder: Path) -> None:
    import torch

    from audit.embedding.descriptor import CopyDescriptor, DescriptorConfig

    torch.manual_seed(0)
    CopyDescriptor(DescriptorConfig(image_size=32, channels=(8, 16), width=16)).save(
        folder / "sscd.safetensors", FLOORS
    )
    model = audit.load_model(MODEL)
    planted = audit.generate(model, [MEMORIZED], seeds=[1], steps=2)["image"][0].as_py()
    for shard in range(2):
        keys = [f"{shard}{row:04d}" for row in range(20)]
        captions = [f"picture {shard * 18 + row} of a thing" for row in range(20)]
        captions[0] = MEMORIZED if shard == 0 else captions[0]
        urls = [f"https://images.example/{key}" for key in keys]
        write_parquet(folder / f"captions/{shard:05d}.parquet", {"caption": captions, "key": keys, "url": urls})
        images = [png(shard * 100 + row) for row in range(20)]
        images[0] = planted if shard == 0 else images[0]
        members = [(f"{key}.png", image) for key, image in zip(keys, images, strict=True)]
        write_tar(folder / f"images/{shard:05d}.tar", members)
    controls = [*CONTROL_CAPTIONS, CONTROL_TWIN]
    (folder / "control_captions.txt").write_text("\n".join(controls), encoding="utf-8")
    screened = audit.screen(model, controls)
    # One row occurs twice, which must not count as another caption.
    pq.write_table(pa.concat_tables([screened, screened[:1]]), folder / "control_screen.parquet")
    write_config(folder)


@pytest.fixture(scope="session")
def weights(toy: Path) -> Path:
    """Return the path of a copy descriptor with random weights."""
    return toy / "sscd.safetensors"


@pytest.fixture(scope="session")
def planted(toy: Path) -> bytes:
    """Return the image that the tiny model generates for MEMORIZED with seed 1.

    When it is placed among the training images, the model reproduces it.
    """
    with tarfile.open(toy / "images/00000.tar") as tar:
        member = tar.extractfile(tar.getmembers()[0])
        assert member is not None
        return member.read()


@pytest.fixture(scope="session")
def control_screen(toy: Path) -> pa.Table:
    """Return the screen table of CONTROL_CAPTIONS and CONTROL_TWIN."""
    return pq.read_table(toy / "control_screen.parquet")[:-1]


@pytest.fixture(scope="session")
def make_dataset(toy: Path) -> Callable[[Path], Path]:
    """Return a function that copies the dataset and its audit.yaml into a folder, and returns the audit.yaml."""

    def make(folder: Path) -> Path:
        shutil.copytree(toy, folder, dirs_exist_ok=True)
        return folder / "audit.yaml"

    return make


@pytest.fixture(scope="session")
def audited() -> Callable[..., str]:
    """Return a function that runs an audit.yaml in this process, and returns the path of the run."""

    def run(path: Path, *overrides: str, out: str | None = None) -> str:
        from pipelines.configuration.settings import load_config
        from pipelines.runs.audit import run_audit

        config, given = load_config(path, overrides, out)
        run_audit(config, given)
        return config.out

    return run


@pytest.fixture(scope="session")
def finished(toy: Path, audited: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the dataset. It is computed once, so tests must not change it."""
    folder = shared(tmp_path_factory, "finished", lambda folder: audited(toy / "audit.yaml", out=str(folder / "run")))
    return folder / "run"


@pytest.fixture(scope="session")
def few(toy: Path, audited: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the dataset with few generations. It is computed once, so tests must not change it."""
    folder = shared(tmp_path_factory, "few", lambda folder: audited(toy / "audit.yaml", *FEW, out=str(folder / "run")))
    return folder / "run"


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished run that the test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))
