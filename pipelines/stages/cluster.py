"""Cluster: find training images that are near duplicates, using the vectors of the deciding embedder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.duplicates.images import clusters, duplicate_threshold, edited, near_pairs
from audit.record.ledger import Ledger, Shard, Tables, errors_table
from audit.record.manifest_entries import ClustersEntry
from audit.search.exact import vectors_of
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps import identical_images, near_duplicates
from pipelines.steps.identical_images import COPIES, LINK
from pipelines.tables import embeddings, training_images
from pipelines.tables.blocks import BLOCK, block, blocks, numbers

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker

# Number of images that are compared with edited copies of themselves.
SAMPLE = 200
EDITED, LINKS, MEMBERS, NAMED = "_edited_copies", "_image_links", "_image_members", "_image_names"
SIMILARITY = pa.schema([("image_id", pa.string()), ("similarity", pa.float64())])
_MEMBERS = pa.schema([("first", pa.int64()), ("image", pa.int64()), ("cluster_size", pa.int64())])
_NAMED = pa.schema([("image", pa.int64()), ("cluster", pa.string()), ("cluster_size", pa.int64())])


def run(run: Run) -> None:
    """Write `image_clusters`, unless the run has no training images."""
    table = embeddings.table(run.config.confirm.embedders[0])
    if run.config.images is None or not run.manifest.refresh(table):
        return
    counts = {file.removesuffix(".parquet"): rows for file, rows in run.manifest.data.parts[table].items()}
    step, shards = _last_step(run), blocks(counts, identical_images.BLOCK)
    with run.stage("cluster", "images") as stage:
        # The working tables of a run that has its clusters may be gone.
        if run.manifest.data.clusters is None or not step.done() >= {shard.name for shard in shards}:
            _cluster(run, table, counts)
        stage.rows_in, stage.rows_out = sum(counts.values()), run.manifest.refresh("image_clusters")


def _cluster(run: Run, table: str, counts: Mapping[str, int]) -> None:
    """Write `image_clusters`, and describe the clusters in the manifest."""
    identical_images.run(run, table, counts)
    threshold, source = _threshold(run, counts)
    by_cells = run.config.index.type == "ivf"
    if by_cells:
        near_duplicates.run(run, counts, LINKS, threshold)
    else:
        work, on_lost_row = partial(_near, threshold=threshold), partial(_on_lost_row, table=table)
        run.execute(Step("cluster", LINKS, "images", run.ledger, work, on_lost_row), blocks(counts, BLOCK))
    image_F, first_F = _write(run, counts)
    measured = near_duplicates.recall(run.ledger, image_F, first_F) if by_cells else {}
    run.manifest.data.clusters = ClustersEntry(
        threshold=threshold, source=source, images_with_duplicates=len(image_F), **measured
    )
    several = f"{len(image_F):,} have near duplicates"
    run.progress.note(several + (f"; {near_duplicates.sentence(measured)}" if by_cells else ""))


def _last_step(run: Run) -> Step:
    return Step("cluster: names", "image_clusters", "images", run.ledger, _clusters)


def _write(run: Run, counts: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Write `image_clusters`, and return the images with duplicates and the first image of each cluster, by number."""
    ledger, shards = run.ledger, blocks(counts, identical_images.BLOCK)
    links = pa.concat_tables([ledger.read(COPIES), ledger.read(LINKS)])
    image_F, first_F, size_F = clusters(np.stack([links["first"].to_numpy(), links["image"].to_numpy()], axis=1))
    if not ledger.parts(MEMBERS):
        ledger.write(MEMBERS, "00000", pa.table([first_F, image_F, size_F], schema=_MEMBERS).sort_by("first"))
    run.execute(Step("cluster: first images", NAMED, "images", ledger, _named), shards)
    run.execute(_last_step(run), shards)
    return image_F, first_F


def _named(worker: Worker, shard: Shard) -> Tables:
    """Return the members of clusters whose first image is in the shard, with its name, by number."""
    low, high = numbers(shard)
    members = worker.ledger.between(MEMBERS, "first", low, high)
    names = _ids(worker, shard).take(pa.array(members["first"].to_numpy() - low))
    return {NAMED: pa.table([members["image"], names, members["cluster_size"]], schema=_NAMED).sort_by("image")}


def _clusters(worker: Worker, shard: Shard) -> Tables:
    low, high = numbers(shard)
    ids, known = _ids(worker, shard), worker.ledger.between(NAMED, "image", low, high)
    at = pc.index_in(pa.array(np.arange(low, high)), value_set=known["image"].combine_chunks())
    names, sizes = (known[name].combine_chunks().take(at) for name in ("cluster", "cluster_size"))
    columns = [ids, pc.coalesce(names, ids), pc.coalesce(sizes, 1)]
    return {"image_clusters": pa.table(columns, schema=schema.IMAGE_CLUSTERS)}


def _ids(worker: Worker, shard: Shard) -> pa.Array:
    table = embeddings.table(worker.config.confirm.embedders[0])
    return block(worker.ledger, table, shard, ["image_id"])["image_id"].combine_chunks()


def _threshold(run: Run, counts: Mapping[str, int]) -> tuple[float, str]:
    """Return the similarity at or above which images count as near duplicates, and where it comes from."""
    given = run.config.embedder(run.config.confirm.embedders[0]).min_similarity_duplicate
    if given is not None:
        return given, "configured"
    known = run.manifest.data.clusters
    if known is not None and not run.ledger.parts(EDITED):
        return known.threshold, known.source  # the run lost clusters after it was finished
    ids = _drawn(run, counts)
    sample = Shard("00000", tuple(ids), 0, len(ids))
    needs = (run.config.confirm.embedders[0],)
    run.execute(Step("cluster: edited copies", EDITED, "images", run.ledger, _edited, _on_lost_sample, needs), [sample])
    similarity_N = run.ledger.read(EDITED)["similarity"].to_numpy()
    return duplicate_threshold(similarity_N), f"{len(similarity_N)} edited copies"


def _drawn(run: Run, counts: Mapping[str, int]) -> list[str]:
    """Draw SAMPLE images at random, by `select.seed` or a seed of the inputs, and return their ids."""
    given = run.config.select.seed
    seed = run.manifest.data.seed_of_inputs if given is None else given
    table = embeddings.table(run.config.confirm.embedders[0])
    parts, start_N = list(counts), np.cumsum([0, *counts.values()])
    number_S = np.random.default_rng(seed).permutation(start_N[-1])[:SAMPLE]
    part_S = np.searchsorted(start_N, number_S, "right") - 1
    ids_S = np.empty(len(number_S), dtype=object)
    for part in np.unique(part_S):
        drawn = np.flatnonzero(part_S == part)
        listed = run.ledger.read(table, parts[part], ["image_id"])["image_id"]
        ids_S[drawn] = listed.take(number_S[drawn] - start_N[part]).to_pylist()
    return list(ids_S)


def _edited(worker: Worker, shard: Shard) -> Tables:
    """Measure the similarity of images to slightly edited copies of themselves."""
    assert worker.config.images is not None
    options, embedder = worker.config.images, worker.embedder(worker.config.confirm.embedders[0])
    ids = shard.source[shard.start : shard.stop]
    places = training_images.places_of(worker.ledger, ids)
    turned = [(id_, training_images.primary(options)) for id_ in ids]
    picture_of = dict(training_images.pictures(options, places, turned))
    pictures = [picture_of[image] for image in turned]
    # Each image has its own seed, so that its copy does not depend on the other images.
    copies = [edited(image, np.random.default_rng(int(id_, 16))) for id_, image in zip(ids, pictures, strict=True)]
    similarity_N = (embedder.embed(pictures) * embedder.embed(copies)).sum(axis=1)
    return {EDITED: pa.table([ids, similarity_N.astype(np.float64)], schema=SIMILARITY)}


def _on_lost_sample(_ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    error = {"stage": "cluster", "kind": kind, "message": f"image {shard.source[shard.start]}: {message}"}
    return {EDITED: SIMILARITY.empty_table(), "errors": errors_table([error])}


def _near(worker: Worker, shard: Shard, threshold: float) -> Tables:
    """Link the images of the shard to near duplicates among them and among earlier images."""
    name = worker.config.confirm.embedders[0]
    block_QE = vectors_of(block(worker.ledger, embeddings.table(name), shard, ["vector"])["vector"])
    shards = (vectors_NE for _, vectors_NE in embeddings.embedded(worker.ledger, embeddings.table(name)))
    found_M2 = near_pairs(block_QE, shard.source[0] + shard.start, shards, threshold)
    return {LINKS: pa.table([found_M2[:, 0], found_M2[:, 1]], schema=LINK)}


def _on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str, table: str) -> Tables:
    [place] = block(ledger, table, shard, ["file", "row"]).to_pylist()
    error = place | {"stage": "cluster", "rows": 1, "kind": kind, "message": message}
    return {LINKS: LINK.empty_table(), "errors": errors_table([error])}
