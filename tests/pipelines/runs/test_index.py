"""`crossaudit index`: what an audit takes from one is what it would have computed, or it takes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from audit.embedding.descriptor import CopyDescriptor, DescriptorConfig
from audit.embedding.loading import load_embedder
from audit.errors import AuditError, UsageError
from audit.images.decoding import decode
from audit.record.ledger import Ledger
from audit.search.exact import vectors_of
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.reading import input_files
from pipelines.runs.audit import run_audit
from pipelines.runs.index import build_index
from pipelines.stages import reuse
from reports.check import check
from tests.support.toy import FEW_GENERATIONS, MEMORIZED, png, settings_of, write_config, write_tar

pytestmark = pytest.mark.slow

SHARDS = "engine.shard_rows=12"


@pytest.fixture(scope="module")
def dataset(make_dataset: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sound dataset, with one image in it that is none."""
    path = make_dataset(tmp_path_factory.mktemp("indexed"))
    write_tar(path.parent / "images/00002.tar", [("odd0.png", b"no image"), ("odd1.png", png(900))])
    return path


@pytest.fixture(scope="module")
def index(dataset: Path) -> Ledger:
    """Its shards are smaller than those of the audits."""
    return Ledger(build_index(*load_config(dataset, [SHARDS]), out=str(dataset.parent / "index")))


def manifest(run: Ledger) -> dict[str, Any]:
    content = run.read_bytes("manifest.json")
    assert content is not None
    return json.loads(content)


def with_index(folder: Path, **changes: Any) -> Path:
    """audit.yaml of a model that was trained on the indexed images."""
    settings = {
        "index": {"path": str(folder / "index")},
        "select": FEW_GENERATIONS["select"],
        "confirm": settings_of()["confirm"] | FEW_GENERATIONS["confirm"] | {"max_unreadable_fraction": 1.0},
    }
    return write_config(folder, **settings | changes)


def test_an_index_has_the_vectors_and_what_could_not_be_read_and_nothing_else(index: Ledger, dataset: Path) -> None:
    tables = {path.name for path in Path(index.uri).iterdir() if path.is_dir()}
    assert tables == {"embeddings_sscd", "errors"}
    assert [(result.ok, result.name) for result in check(index.uri) if not result.ok] == []
    found = manifest(index)
    assert found["kind"] == "index"
    assert found["resolved"]["confirm"].keys() == {"embedders", "sscd"}
    assert found["stages"]["embed"] | {"seconds": 0} == {"rows_in": 42, "rows_out": 41, "errors": 1, "seconds": 0}
    embedder = load_embedder("sscd", dataset.parent / "sscd.safetensors")
    wanted = embedder.embed([decode(png(900))]).astype(np.float16)
    part = index.read("embeddings_sscd", "00002-00000")
    assert part["key"].to_pylist() == ["odd1"]
    assert vectors_of(part["vector"]) == pytest.approx(wanted, abs=1e-3)


def test_check_misses_a_vector(index: Ledger) -> None:
    before = index.read("embeddings_sscd", "00000-00001")
    try:
        index.write("embeddings_sscd", "00000-00001", before.slice(1))
        wrong = [result.name for result in check(index.uri) if not result.ok]
        assert wrong == ["every part is listed in the manifest, and whole"]
        data = manifest(index)
        data["parts"]["embeddings_sscd"]["00000-00001.parquet"] -= 1
        content = index.read_bytes("manifest.json")
        index.write_bytes("manifest.json", json.dumps(data).encode())
        [result] = [result for result in check(index.uri) if not result.ok]
        assert "has a vector from every embedder" in result.name
    finally:
        index.write("embeddings_sscd", "00000-00001", before)
        assert content is not None
        index.write_bytes("manifest.json", content)


@pytest.fixture(scope="module")
def own(index: Ledger, dataset: Path, audited: Callable[..., str]) -> Ledger:
    """An audit that computed its vectors."""
    return Ledger(audited(with_index(dataset.parent, index={}), out=str(dataset.parent / "own")))


def test_an_audit_that_takes_the_vectors_gives_the_same_tables(
    own: Ledger, index: Ledger, dataset: Path, audited: Callable[..., str], tmp_path: Path
) -> None:
    """Its images lie elsewhere."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for tar in (dataset.parent / "images").iterdir():
        (moved / tar.name).write_bytes(tar.read_bytes())
    path = with_index(dataset.parent, images=f"{moved}/*.tar")
    taken = Ledger(audited(path, out=str(tmp_path / "taken")))
    assert [result for result in check(taken.uri) if not result.ok] == []
    for table in ("matches", "evidence", "verdicts", "embeddings_sscd"):
        order = [(name, "ascending") for name in own.read(table).schema.names[:4]]
        assert taken.read(table).sort_by(order).equals(own.read(table).sort_by(order)), table
    assert taken.parts("embeddings_sscd") == index.parts("embeddings_sscd")
    assert {row["caption"]: row["verdict"] for row in taken.read("verdicts").to_pylist()}[MEMORIZED] == "verbatim"
    stage = manifest(taken)["stages"]["embed"]
    assert (stage["rows_in"], stage["rows_out"], stage["errors"]) == (42, 41, 1)


def begun(path: Path, folder: Path, *overrides: str) -> Run:
    """A run at the point where it looks at its index."""
    config, given = load_config(path, overrides, str(folder / "run"))
    ledger = Ledger(config.out)
    run = Run(config, ledger, Manifest.open(ledger, config, given), Reporter())
    for name in config.confirm.embedders:
        run.manifest.model(name, load_embedder(name, config.embedder(name).weights).fingerprint)
    run.manifest.inputs(input_files.fingerprints(config, input_files.find_inputs(config)))
    return run


def refused(path: Path, folder: Path, *overrides: str) -> str:
    with pytest.raises(AuditError) as caught:
        reuse.check(begun(path, folder, *overrides))
    assert len(str(caught.value).splitlines()) == 2
    return str(caught.value)


def test_other_weights_are_refused(index: Ledger, dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    CopyDescriptor(DescriptorConfig(image_size=32, channels=(8, 16), width=16)).save(tmp_path / "sscd.safetensors")
    path = with_index(dataset.parent)
    message = refused(path, tmp_path, f"confirm.sscd.weights={tmp_path}/sscd.safetensors")
    assert "sscd.safetensors of the embedder sscd is" in message
    assert "crossaudit index" in message
    reuse.check(begun(path, tmp_path))


def test_another_crop_or_embedder_or_data_set_is_refused(index: Ledger, dataset: Path, tmp_path: Path) -> None:
    path = with_index(dataset.parent)
    assert "images.crop is none in the index and centre in this run" in refused(path, tmp_path, "images.crop=centre")
    clip = ("confirm.embedders=[sscd, clip]", f"confirm.clip.weights={dataset.parent}/sscd.safetensors")
    assert "the index has no vectors from the embedder clip" in refused(path, tmp_path, *clip)
    fewer = f"images.path={dataset.parent}/images/0000[01].tar"
    assert "the image file 00002.tar is only in the index" in refused(path, tmp_path, fewer)
    write_tar(dataset.parent / "images/00003.tar", [("new.png", png(5))])
    try:
        assert "the image file 00003.tar is not in the index" in refused(path, tmp_path)
    finally:
        (dataset.parent / "images/00003.tar").unlink()
    tar = dataset.parent / "images/00002.tar"
    before = tar.read_bytes()
    write_tar(tar, [("odd0.png", b"no picture"), ("odd1.png", png(900))])
    try:
        assert "the image file 00002.tar has changed since" in refused(path, tmp_path)
        assert "and 1 more differences" in refused(path, tmp_path, "images.crop=centre")
    finally:
        tar.write_bytes(before)


def test_images_prepared_by_another_version_are_refused(index: Ledger, dataset: Path, tmp_path: Path) -> None:
    data, content = manifest(index), index.read_bytes("manifest.json")
    data["models"]["sscd"]["preprocessing"] = "0: square 32, bicubic"
    assert content is not None
    try:
        index.write_bytes("manifest.json", json.dumps(data).encode())
        message = refused(with_index(dataset.parent), tmp_path)
        assert "preprocessing of the embedder sscd is 0: square 32, bicubic in the index and 2: square 32" in message
    finally:
        index.write_bytes("manifest.json", content)


def test_what_is_no_finished_index_is_refused(index: Ledger, dataset: Path, tmp_path: Path) -> None:
    path = with_index(dataset.parent)
    assert "there is no index at this path" in refused(path, tmp_path, f"index.path={tmp_path}/nothing")
    (tmp_path / "half").mkdir()
    half = json.dumps(manifest(index) | {"finished": None})
    (tmp_path / "half/manifest.json").write_text(half)
    assert "the index is not finished" in refused(path, tmp_path, f"index.path={tmp_path}/half")


def test_a_damaged_part_of_an_index_is_named(index: Ledger, dataset: Path, tmp_path: Path) -> None:
    part = Path(index.path("embeddings_sscd", "00001-00000.parquet"))
    before = part.read_bytes()
    run = begun(with_index(dataset.parent), tmp_path)
    try:
        part.write_bytes(before[:-50])
        with pytest.raises(AuditError, match=r"embeddings_sscd/00001-00000.parquet: cannot be read"):
            reuse.run(run)
        pq.write_table(index.read("embeddings_sscd", "00000-00000").slice(3), part)
        with pytest.raises(AuditError, match=r"00001-00000.parquet: has 9 rows, but the manifest .* lists 12"):
            reuse.run(run)
        assert "00001-00000" not in run.ledger.parts("embeddings_sscd")
    finally:
        part.write_bytes(before)


def test_an_earlier_audit_serves_as_an_index(own: Ledger, dataset: Path, tmp_path: Path) -> None:
    run = begun(with_index(dataset.parent, index={"path": own.uri}), tmp_path)
    reuse.check(run)
    reuse.run(run)
    assert run.ledger.read("embeddings_sscd").equals(own.read("embeddings_sscd"))
    assert run.ledger.rows("errors", "embeddings_sscd-00002-00000") == 1
    assert run.manifest.data.stages["embed"].errors == 1
    run.ledger.remove("embeddings_sscd", "00001-00000")
    reuse.run(run)
    assert run.ledger.read("embeddings_sscd").equals(own.read("embeddings_sscd"))


def test_an_index_is_resumed_and_not_mixed_with_another_or_with_an_audit(index: Ledger, dataset: Path) -> None:
    given = load_config(with_index(dataset.parent), [SHARDS])
    before = index.read("embeddings_sscd")
    index.remove("embeddings_sscd", "00000-00000")
    assert build_index(*given) == index.uri  # at index.path
    assert index.read("embeddings_sscd").equals(before)
    cropped = load_config(with_index(dataset.parent), [SHARDS, "images.crop=centre"])
    with pytest.raises(AuditError, match="images.crop was 'none' when this run began and is 'centre' now"):
        build_index(*cropped)
    with pytest.raises(AuditError, match="holds an index, not an audit"):
        run_audit(*load_config(with_index(dataset.parent, index={}), (), index.uri))


def test_an_index_needs_a_place_and_images(dataset: Path) -> None:
    with pytest.raises(UsageError, match="no output path: pass --out or set `index.path`"):
        build_index(*load_config(with_index(dataset.parent, index={})))
    with pytest.raises(UsageError, match="no images"):
        build_index(*load_config(with_index(dataset.parent, images=None)))
