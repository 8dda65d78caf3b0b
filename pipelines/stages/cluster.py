"""Cluster: which training images are near duplicates of each other, from the vectors of the embedder that decides."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from audit import schema
from audit.clusters import clusters, duplicate_threshold, edited, near_pairs
from audit.matching import vectors_of
from pipelines.context import Run, Step
from pipelines.ledger import Ledger, Shard, Tables, errors_table
from pipelines.stages import embed

if TYPE_CHECKING:
    from pipelines.worker import Worker

# So many images are compared with edited copies of themselves.
SAMPLE = 200
# So many images are compared with all before them in one scan of those.
BLOCK = 16_384
EDITED, LINKS = "_edited_copies", "_image_links"
SIMILARITY = pa.schema([("image_id", pa.string()), ("similarity", pa.float64())])
LINK = pa.schema([("first", pa.int64()), ("image", pa.int64())])


def run(run: Run) -> None:
    if run.config.images is None or not run.ledger.parts(embed.table(run.config.confirm.embedders[0])):
        return
    ledger, table = run.ledger, embed.table(run.config.confirm.embedders[0])
    counts = {part: ledger.rows(table, part) for part in ledger.parts(table)}
    with run.manifest.stage("cluster") as stage:
        listed = pa.concat_tables([part for _, part in ledger.each(table, ["image_id", "sha256"])])
        threshold, source = _threshold(run, listed["image_id"])
        step = Step(
            "cluster", LINKS, "images", ledger, partial(_near, threshold=threshold), partial(_left, table=table)
        )
        run.execute(step, _blocks(counts))
        size_N = _write(run, counts, listed)
        several = int((size_N > 1).sum())
        stage |= {"rows_in": len(listed), "rows_out": run.manifest.refresh("image_clusters")}
        run.manifest.data["clusters"] = {"threshold": threshold, "source": source, "images_with_duplicates": several}
        run.progress.say(f"cluster: {several:,} of {len(listed):,} images have duplicates (similarity {threshold:.2f})")


def _write(run: Run, counts: dict[str, int], listed: pa.Table) -> np.ndarray:
    """Writes `image_clusters`, a part for each of the embeddings; returns the size of each image's cluster."""
    links = run.ledger.read(LINKS)
    near_M2 = np.stack([links["first"].to_numpy(), links["image"].to_numpy()], axis=1)
    cluster_N, size_N = clusters(listed["sha256"], near_M2)
    first = listed["image_id"].take(pa.array(cluster_N))
    found = pa.table([listed["image_id"], first, pa.array(size_N)], schema=schema.IMAGE_CLUSTERS)
    for (part, count), start in zip(counts.items(), accumulate(counts.values(), initial=0), strict=False):
        run.ledger.write("image_clusters", part, found.slice(start, count))
        run.manifest.part("image_clusters", part, count)
    return size_N


def _threshold(run: Run, image_ids: pa.ChunkedArray) -> tuple[float, str]:
    """From which similarity on images are near duplicates, and where that comes from."""
    given = run.config.embedder(run.config.confirm.embedders[0]).duplicate
    if given is not None:
        return given, "configured"
    drawn = np.random.default_rng(run.config.select.seed).permutation(len(image_ids))[:SAMPLE]
    sample = Shard("00000", tuple(image_ids.take(pa.array(drawn)).to_pylist()), 0, len(drawn))
    needs = (run.config.confirm.embedders[0],)
    run.execute(Step("cluster: edited copies", EDITED, "images", run.ledger, _edited, _unedited, needs), [sample])
    similarity_N = run.ledger.read(EDITED)["similarity"].to_numpy()
    return duplicate_threshold(similarity_N), f"{len(similarity_N)} edited copies"


def _edited(worker: Worker, shard: Shard) -> Tables:
    """How alike images are to slightly edited copies of themselves."""
    assert worker.config.images is not None
    options, embedder = worker.config.images, worker.embedder(worker.config.confirm.embedders[0])
    ids = shard.source[shard.start : shard.stop]
    places = embed.places_of(worker.ledger, ids)
    picture_of = dict(embed.pictures(options, places, ids))
    pictures = [picture_of[id_] for id_ in ids]
    # Each has a seed of its own, so that what one becomes does not depend on the others.
    copies = [edited(image, np.random.default_rng(int(id_, 16))) for id_, image in zip(ids, pictures, strict=True)]
    similarity_N = (embedder.embed(pictures) * embedder.embed(copies)).sum(axis=1)
    return {EDITED: pa.table([ids, similarity_N.astype(np.float64)], schema=SIMILARITY)}


def _unedited(_ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    error = {"stage": "cluster", "kind": kind, "message": f"image {shard.source[shard.start]}: {message}"}
    return {EDITED: SIMILARITY.empty_table(), "errors": errors_table([error])}


def _blocks(counts: dict[str, int], block: int = BLOCK) -> list[Shard]:
    """Consecutive parts of the embeddings, together up to `block` images; source: (place of the first image, parts)."""
    groups: list[tuple[int, list[str], int]] = []
    for (part, count), start in zip(counts.items(), accumulate(counts.values(), initial=0), strict=False):
        if groups and groups[-1][2] + count <= block:
            first, parts, rows = groups[-1]
            groups[-1] = first, [*parts, part], rows + count
        else:
            groups.append((start, [part], count))
    return [Shard(f"{number:05d}", (first, parts), 0, rows) for number, (first, parts, rows) in enumerate(groups)]


def _block(ledger: Ledger, table: str, shard: Shard, columns: Sequence[str]) -> pa.Table:
    parts = [ledger.read(table, part, columns) for part in shard.source[1]]
    return pa.concat_tables(parts).slice(shard.start, len(shard))


def _near(worker: Worker, shard: Shard, threshold: float) -> Tables:
    """What connects the images of the shard with near duplicates in it and before it."""
    name = worker.config.confirm.embedders[0]
    block_QE = vectors_of(_block(worker.ledger, embed.table(name), shard, ["vector"])["vector"])
    shards = (vectors_NE for _, vectors_NE in embed.embedded(worker.ledger, name))
    found_M2 = near_pairs(block_QE, shard.source[0] + shard.start, shards, threshold)
    return {LINKS: pa.table([found_M2[:, 0], found_M2[:, 1]], schema=LINK)}


def _left(ledger: Ledger, shard: Shard, kind: str, message: str, table: str) -> Tables:
    [place] = _block(ledger, table, shard, ["file", "row"]).to_pylist()
    error = place | {"stage": "cluster", "rows": 1, "kind": kind, "message": message}
    return {LINKS: LINK.empty_table(), "errors": errors_table([error])}
