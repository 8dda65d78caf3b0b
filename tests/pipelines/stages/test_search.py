"""Search: the inverted file stands in for the scan, a background is taken off, and what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from audit.errors import AuditError
from audit.record.ledger import Ledger, Shard
from audit.search.exact import nearest
from pipelines.configuration.config import Config
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.engine.worker import Worker
from pipelines.stages import search
from pipelines.steps import image_search
from pipelines.tables import embeddings
from tests.support.manifests import manifest as manifest_of
from tests.support.toy import settings_of, write_config
from tests.support.vectors import copies, written


def config_of(folder: Path, **changes: Any) -> Config:
    (folder / "sscd.safetensors").write_bytes(b"")
    return load_config(write_config(folder, **changes))[0]


def confirm(**sscd: Any) -> dict[str, Any]:
    return settings_of()["confirm"] | {"sscd": sscd}


def queries() -> np.ndarray:
    found = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_an_inverted_file_finds_what_the_scan_finds_and_may_lie_with_the_index(tmp_path: Path) -> None:
    exact = config_of(tmp_path)
    written(Ledger(exact.out), copies(0, 60, 3), [100, 80])
    ids, similarity, *_ = image_search.find(Worker(exact), "sscd", queries(), 5)

    run = config_of(tmp_path, index={"type": "ivf"})
    tables = search._build(Worker(run), Shard("sscd", "sscd", 0, 1))
    assert tables[image_search.IVF].to_pylist() == [{"recipe": "IVF4,SQ8", "images": 180}]
    found, near, *_ = image_search.find(Worker(run), "sscd", queries(), 5)
    assert (found == ids).all()
    assert near == pytest.approx(similarity, abs=1e-6)

    Ledger(run.out).write(image_search.IVF, "sscd", tables[image_search.IVF])
    elsewhere = config_of(tmp_path, index={"type": "ivf", "path": run.out}, out="other")
    written(Ledger(elsewhere.out), copies(0, 60, 3), [100, 80])
    assert (image_search.find(Worker(elsewhere), "sscd", queries(), 5)[0] == ids).all()
    assert not Path(elsewhere.out, image_search.IVF).exists()


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_of_an_image_that_was_embedded_both_ways_the_better_match_counts(tmp_path: Path, kind: str) -> None:
    config = config_of(tmp_path, index={"type": kind})
    ledger, upright, stored = Ledger(config.out), copies(0, 60, 1), copies(9, 20, 1)
    upright, stored = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (upright, stored))
    written(ledger, upright, [30, 30])
    ids = ledger.read(embeddings.table("sscd"))["image_id"].to_pylist()
    first = ledger.read(embeddings.table("sscd")).slice(0, 20)
    of_stored = pa.FixedSizeListArray.from_arrays(pa.array(stored.ravel(), pa.float16()), type=first["vector"].type)
    turned = first.set_column(first.schema.get_field_index("vector"), "vector", of_stored)
    ledger.write(embeddings.stored_table("sscd"), "00000", turned)
    worker = Worker(config)
    if kind == "ivf":
        ledger.write(image_search.IVF, "sscd", search._build(worker, Shard("sscd", "sscd", 0, 1))[image_search.IVF])
    both = np.concatenate([stored[:3], upright[30:33]]).astype(np.float32)
    near = image_search.find(worker, "sscd", both, 5)
    assert near.ids[:, 0].tolist() == ids[:3] + ids[30:33]
    assert near.orientation[:, 0].tolist() == ["stored"] * 3 + ["upright"] * 3
    # Each image once, by the better of its two similarities.
    best = both @ upright.T.astype(np.float32)
    best[:, :20] = np.maximum(best[:, :20], both @ stored.T.astype(np.float32))
    assert all(len(set(row)) == 5 for row in near.ids)
    assert near.similarity == pytest.approx(-np.sort(-best, axis=1)[:, :5], abs=2e-3)


def test_a_background_takes_off_the_mean_of_the_two_nearest_in_it(tmp_path: Path) -> None:
    background = Ledger(str(tmp_path / "background"))
    written(background, copies(5, 9, 1), [4, 5])
    plain, config = (config_of(tmp_path, confirm=confirm(**more)) for more in ({}, {"background": background.uri}))
    written(Ledger(config.out), copies(0, 10, 2), [20])
    ids, similarity, *_ = image_search.find(Worker(plain), "sscd", queries(), 3)
    normalised_ids, normalised, _, taken_off = image_search.find(Worker(config), "sscd", queries(), 3)
    _, two = nearest(queries(), embeddings.embedded(background, embeddings.table("sscd")), 2)
    assert (normalised_ids == ids).all()
    assert normalised == pytest.approx(similarity - two.mean(axis=1, keepdims=True), abs=1e-6)
    assert normalised + taken_off[:, None] == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "is not a finished index"),
        ({"finished": None}, "is not a finished index"),
        ({"finished": "now", "models": {"sscd": {"weights": "other"}}}, "come from another sscd"),
        ({"finished": "now", "models": {"sscd": {"weights": "w"}}, "parts": {"embeddings_sscd": {"0": 1}}}, "least 2"),
        ({"finished": "now", "models": {"sscd": {"weights": "w"}}, "parts": {"embeddings_sscd": {"0": 2}}}, None),
    ],
)
def test_a_background_is_a_finished_index_of_the_same_embedder(
    tmp_path: Path, manifest: dict[str, Any] | None, message: str | None
) -> None:
    background = Ledger(str(tmp_path / "background"))
    if manifest:
        background.write_bytes("manifest.json", json.dumps(manifest_of(kind="index", **manifest)).encode())
    config = config_of(tmp_path, confirm=confirm(background=background.uri))
    run = Run(config, Ledger(config.out), Manifest.open(Ledger(config.out), config, {}), Reporter())
    run.manifest.model("sscd", {"weights": "w"})
    if message is None:
        search.check(run)
    else:
        with pytest.raises(AuditError, match=message):
            search.check(run)
