"""Cluster: which images are near duplicates is the same however the table is cut, and captions learn of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from audit import schema
from pipelines.config import Config
from pipelines.context import Run
from pipelines.ledger import Ledger, Shard
from pipelines.manifest import Manifest
from pipelines.progress import Reporter
from pipelines.settings import load_config
from pipelines.stages import cluster, embed
from pipelines.worker import Worker
from tests.pipelines.toy import settings_of, write_config

WIDTH = 8


@pytest.fixture
def config(tmp_path: Path) -> Config:
    confirm = settings_of()["confirm"]
    (tmp_path / "sscd.safetensors").write_bytes(b"")
    return load_config(write_config(tmp_path, confirm=confirm | {"sscd": {"duplicate": 0.9}}))[0]


def embeddings(start: int, vectors_NE: np.ndarray) -> pa.Table:
    count = len(vectors_NE)
    vectors_NE = (vectors_NE / np.linalg.norm(vectors_NE, axis=1, keepdims=True)).astype(np.float16)
    names = [f"{number:032x}" for number in range(start, start + count)]
    rows = [{"image_id": name, "file": "0.tar", "row": number, "key": name, "sha256": name, "vector": vector}
            for number, (name, vector) in enumerate(zip(names, vectors_NE, strict=True), start)]  # fmt: skip
    return pa.Table.from_pylist(rows, schema.embeddings(WIDTH))


def copies(seed: int, pictures: int, of_each: int) -> np.ndarray:
    """Pictures in turn, each `of_each` times and slightly different."""
    rng = np.random.default_rng(seed)
    return np.tile(rng.normal(size=(pictures, WIDTH)), (of_each, 1)) + 0.02 * rng.normal(
        size=(pictures * of_each, WIDTH)
    )


def written(ledger: Ledger, vectors_NE: np.ndarray, sizes: list[int]) -> None:
    for number, (start, count) in enumerate(zip(np.cumsum([0, *sizes]), sizes, strict=False)):
        ledger.write(embed.table("sscd"), f"{number:05d}", embeddings(int(start), vectors_NE[start : start + count]))


@pytest.mark.parametrize(("sizes", "halved"), [([20], False), ([7, 7, 6], False), ([3, 17], True)])
def test_clusters_do_not_depend_on_how_the_images_are_cut(config: Config, sizes: list[int], halved: bool) -> None:
    ledger, table = Ledger(config.out), embed.table("sscd")
    manifest = Manifest.open(ledger, config, {})
    written(ledger, copies(0, 5, 4), sizes)
    counts = {part: ledger.rows(table, part) for part in ledger.parts(table)}
    shards = cluster._blocks(counts, 8)
    shards = [half for shard in shards for half in shard.halves()] if halved else shards
    worker = Worker(config)
    for number, shard in enumerate(shards):
        ledger.commit(str(number), cluster._near(worker, shard, threshold=0.9))
    size = cluster._write(Run(config, ledger, manifest, Reporter()), counts, ledger.read(table))
    found = ledger.read("image_clusters")
    assert found.schema.equals(schema.IMAGE_CLUSTERS)
    assert [int(name, 16) for name in found["cluster"].to_pylist()] == list(range(5)) * 4
    assert set(found["size"].to_pylist()) == {4} == set(size)
    assert manifest.data["parts"]["image_clusters"] == {f"{part}.parquet": rows for part, rows in counts.items()}


def test_a_lost_image_is_named_and_the_others_are_compared(config: Config) -> None:
    ledger = Ledger(config.out)
    written(ledger, copies(0, 2, 2), [4])
    left = partial(cluster._left, table=embed.table("sscd"))
    tables = left(ledger, Shard("0", (0, ["00000"]), 2, 3), "worker_died", "the process ended")
    [error] = tables["errors"].to_pylist()
    assert (error["stage"], error["file"], error["row"], error["rows"]) == ("cluster", "0.tar", 2, 1)
    assert tables[cluster.LINKS].schema.equals(cluster.LINK)
