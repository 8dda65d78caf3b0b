"""Cluster: which images are near duplicates is the same however the table is cut, and captions learn of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from audit import schema
from audit.record.ledger import Ledger, Shard
from pipelines.configuration.config import Config, Index
from pipelines.configuration.settings import load_config
from pipelines.stages import cluster
from pipelines.steps import near_duplicates
from pipelines.tables import embeddings
from tests.support.serial import serial
from tests.support.toy import settings_of, write_config
from tests.support.vectors import WIDTH, copies, vectors_table, written


@pytest.fixture
def config(tmp_path: Path) -> Config:
    confirm = settings_of()["confirm"]
    (tmp_path / "sscd.safetensors").write_bytes(b"")
    return load_config(write_config(tmp_path, confirm=confirm | {"sscd": {"min_similarity_duplicate": 0.9}}))[0]


@pytest.mark.parametrize("index", ["exact", "ivf"])
@pytest.mark.parametrize(("sizes", "halved"), [([20], False), ([7, 7, 6], False), ([3, 0, 17], True)])
def test_clusters_do_not_depend_on_how_the_images_are_cut(
    config: Config, monkeypatch: pytest.MonkeyPatch, index: str, sizes: list[int], halved: bool
) -> None:
    for module in (cluster, cluster.identical_images, near_duplicates):
        monkeypatch.setattr(module, "BLOCK", 8)
    config = config.model_copy(update={"index": Index(type=index)})
    run = serial(config, halved)
    written(run.ledger, copies(0, 5, 4), sizes)
    cluster.run(run)
    found = run.ledger.read("image_clusters")
    assert found.schema.equals(schema.IMAGE_CLUSTERS)
    assert found["image_id"].equals(run.ledger.read(embeddings.table("sscd"))["image_id"])
    assert [int(name, 16) for name in found["cluster"].to_pylist()] == list(range(5)) * 4
    assert set(found["cluster_size"].to_pylist()) == {4}
    stage, known = run.manifest.data.stages["cluster"].model_dump(), run.manifest.data.clusters.model_dump()
    assert (stage["rows_in"], stage["rows_out"], known["images_with_duplicates"]) == (20, 20, 20)
    assert (known.get("recall"), known.get("pairs")) == ((1.0, 60) if index == "ivf" else (None, None))


def test_images_of_the_same_bytes_are_one_cluster_whatever_their_vectors(config: Config) -> None:
    run = serial(config)
    vectors_NE = np.eye(WIDTH)
    for part in range(2):
        table = vectors_table(4 * part, vectors_NE[4 * part : 4 * part + 4])
        sha256 = pa.array(["f" * 64, *(f"{row:064x}" for row in range(4 * part, 4 * part + 2)), "e" * 64])
        run.ledger.write(embeddings.table("sscd"), f"{part:05d}", table.set_column(4, "sha256", sha256))
    cluster.run(run)
    found = run.ledger.read("image_clusters").to_pylist()
    assert [int(row["cluster"], 16) for row in found] == [0, 1, 2, 3, 0, 5, 6, 3]
    assert [row["cluster_size"] for row in found] == [2, 1, 1, 2, 2, 1, 1, 2]
    assert run.manifest.data.clusters.images_with_duplicates == 4


def test_the_images_that_the_threshold_is_measured_on_are_drawn_from_all_parts(config: Config) -> None:
    run = serial(config)
    written(run.ledger, copies(0, 5, 4), [3, 0, 17])
    listed = run.ledger.read(embeddings.table("sscd"))["image_id"]
    order = np.random.default_rng(config.select.seed).permutation(20)
    drawn = cluster._drawn(run, {"00000": 3, "00001": 0, "00002": 17})
    assert drawn == listed.take(pa.array(order)).to_pylist()


def test_without_a_configured_seed_the_images_are_drawn_by_the_contents_of_the_inputs(config: Config) -> None:
    run = serial(config.model_copy(update={"select": config.select.model_copy(update={"seed": None})}))
    written(run.ledger, copies(0, 5, 4), [20])
    listed = run.ledger.read(embeddings.table("sscd"))["image_id"]
    order = np.random.default_rng(run.manifest.data.seed_of_inputs).permutation(20)
    assert cluster._drawn(run, {"00000": 20}) == listed.take(pa.array(order)).to_pylist()


def test_a_lost_image_is_named_and_the_others_are_compared(config: Config) -> None:
    ledger = Ledger(config.out)
    written(ledger, copies(0, 2, 2), [4])
    left = partial(cluster._on_lost_row, table=embeddings.table("sscd"))
    tables = left(ledger, Shard("0", (0, ["00000"]), 2, 3), "worker_died", "the process ended")
    [error] = tables["errors"].to_pylist()
    assert (error["stage"], error["file"], error["row"], error["rows"]) == ("cluster", "0.tar", 2, 1)
    assert tables[cluster.LINKS].schema.equals(cluster.LINK)
