"""Finds near-duplicate images by cells.

Searching all cells equals the exact comparison, the result does not depend on how the search is run, and the pairs
missed are reported.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from audit.duplicates import cells
from audit.record.ledger import Ledger, Shard
from pipelines.configuration.config import Config, Index
from pipelines.configuration.settings import load_config
from pipelines.stages import cluster
from pipelines.steps import identical_images, near_duplicates
from pipelines.tables import embeddings
from tests.support.serial import Serial, serial
from tests.support.toy import settings_of, write_config
from tests.support.vectors import WIDTH, vectors_table, written
from tests.support.vectors import copies as varied


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, cells and ranges of few images."""
    monkeypatch.setattr(cells, "PER_CELL", 4)
    monkeypatch.setattr(cells, "BLOCK", 16)
    monkeypatch.setattr(near_duplicates, "RANGE", 64)
    for module in (cluster, identical_images, near_duplicates):
        monkeypatch.setattr(module, "BLOCK", 50)


def config_of(folder: Path, index: str = "ivf") -> Config:
    folder.mkdir(exist_ok=True)
    (folder / "sscd.safetensors").write_bytes(b"")
    confirm = settings_of()["confirm"] | {"sscd": {"min_similarity_duplicate": 0.9}}
    return load_config(write_config(folder, confirm=confirm, index=Index(type=index).model_dump()))[0]


def clustered(config: Config, vectors_NE: np.ndarray, sizes: list[int], halved: bool = False) -> Serial:
    run = serial(config, halved)
    written(run.ledger, vectors_NE, sizes)
    cluster.run(run)
    return run


def found(run: Serial) -> tuple[pa.Table, dict]:
    return run.ledger.read("image_clusters"), run.manifest.data.clusters.model_dump()


def test_with_all_cells_of_every_image_it_is_the_exact_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells, "EACH", 100)
    vectors_NE = np.concatenate([varied(0, 30, 4), varied(1, 80, 1)])
    exact, _ = found(clustered(config_of(tmp_path / "exact", "exact"), vectors_NE, [200]))
    run = clustered(config_of(tmp_path / "cells"), vectors_NE, [200])
    assert run.ledger.rows(near_duplicates.CENTRES, "00000") == 50
    table, known = found(run)
    assert table.equals(exact)
    assert known["recall"] == 1.0
    assert known["pairs"] >= 30 * 12


def test_it_is_the_same_however_images_are_cut_and_shards_are_halved(tmp_path: Path) -> None:
    vectors_NE = np.concatenate([varied(0, 30, 4), varied(1, 80, 1)])
    first = clustered(config_of(tmp_path / "0"), vectors_NE, [200])
    assert len(near_duplicates.ranges_of(200)) > 5
    for number, (sizes, halved) in enumerate([([200], True), ([49, 1, 0, 30, 120], False), ([7] * 28 + [4], True)], 1):
        other = clustered(config_of(tmp_path / str(number)), vectors_NE, sizes, halved)
        assert found(other)[0].equals(found(first)[0])
        assert found(other)[1] == found(first)[1]
        assert other.ledger.read(near_duplicates.CENTRES).equals(first.ledger.read(near_duplicates.CENTRES))


def test_what_was_lost_is_made_again_and_the_large_table_goes(tmp_path: Path) -> None:
    vectors_NE = varied(0, 50, 4)
    config = config_of(tmp_path / "run")
    before = found(clustered(config, vectors_NE, [70, 60, 70]))
    ledger = Ledger(config.out)
    assert not ledger.parts(near_duplicates.CELLS)
    for table, part in (
        (cluster.LINKS, "00003"),
        (near_duplicates.PAIRS, "00001"),
        (identical_images.HASHES, "00000"),
        (near_duplicates.SAMPLE, "00002"),
    ):
        assert part in ledger.parts(table)
        ledger.remove(table, part)
    for table in (cluster.NAMED, "image_clusters"):
        ledger.remove(table, "00001")
    again = serial(config)
    cluster.run(again)
    assert found(again) == before
    assert not ledger.parts(near_duplicates.CELLS)


def test_a_pair_on_the_border_of_two_cells_is_missed_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Centres at 0 and 90 degrees: 44 and 46 are of different cells, 3 and 4 of the same."""
    angles = np.radians([44, 46, 3, 4, 3])
    vectors_NE = np.zeros((5, WIDTH))
    vectors_NE[:, 0], vectors_NE[:, 1] = np.cos(angles), np.sin(angles)
    table = vectors_table(0, vectors_NE)
    # The last one has the bytes of the third: of no pair that cells are to find.
    hashes = table["sha256"].to_pylist()
    table = table.set_column(4, "sha256", pa.array([*hashes[:4], hashes[2]]))
    monkeypatch.setattr(cells, "PER_CELL", 1)
    for each, recall, clusters in ((1, 0.5, [0, 1, 2, 2, 2]), (2, 1.0, [0, 0, 2, 2, 2])):
        monkeypatch.setattr(cells, "EACH", each)
        run = serial(config_of(tmp_path / str(each)))
        run.ledger.write(embeddings.table("sscd"), "00000", table)
        centres = near_duplicates._with_vectors(
            {"cell": np.arange(2, dtype=np.int32)}, np.eye(2, WIDTH, dtype=np.float32)
        )
        run.ledger.write(near_duplicates.CENTRES, "00000", centres)
        cluster.run(run)
        found_, known = found(run)
        assert [int(name, 16) for name in found_["cluster"].to_pylist()] == clusters
        assert (known["recall"], known["pairs"]) == (recall, 4)


def test_without_a_pair_there_is_no_recall(tmp_path: Path) -> None:
    _, known = found(clustered(config_of(tmp_path), np.eye(WIDTH), [WIDTH]))
    assert (known["recall"], known["pairs"], known["images_with_duplicates"]) == (None, 0, 0)
    assert near_duplicates.sentence(known) == "no pairs to measure the recall of the cells"


def test_every_image_counts_once_however_many_copies_it_has(tmp_path: Path) -> None:
    """Image 0 has three pairs, all found; 5 and 6 have one, which is not."""
    ledger = Ledger(str(tmp_path))
    first, image = [0, 0, 0, 5, 6], [1, 2, 3, 6, 5]
    ledger.write(near_duplicates.PAIRS, "00000", pa.table([first, image], schema=identical_images.LINK))
    measured = near_duplicates.recall(ledger, np.array([0, 1, 2, 3]), np.zeros(4, np.int64))
    assert measured == {"recall": pytest.approx(1 / 3), "images": 3, "pairs": 5}
    assert near_duplicates.sentence(measured) == "cells connect 33.3% of 5 pairs (mean over 3 images)"


@pytest.mark.parametrize("images", [0, 1, 30, 5000, 10**7])
def test_every_cell_is_in_one_range(images: int) -> None:
    ranges = near_duplicates.ranges_of(images)
    assert [number for shard in ranges for number in range(shard.start, shard.stop)] == list(
        range(cells.cells_for(images))
    )
    assert all(len(shard) for shard in ranges)


def test_a_cell_that_cannot_be_compared_is_named(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    tables = near_duplicates._on_lost_cell(
        ledger, Shard("00001", None, 17, 18), "timeout", "took too long", links=cluster.LINKS
    )
    [error] = tables["errors"].to_pylist()
    assert (error["stage"], error["kind"], error["message"]) == ("cluster", "timeout", "cell 17: took too long")
    assert tables[cluster.LINKS].schema.equals(identical_images.LINK)
