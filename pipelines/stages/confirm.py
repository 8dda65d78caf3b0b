"""Confirm: match generations with training images, set thresholds from control captions, and try fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.images.decoding import decode
from audit.record.ledger import Ledger, Shard, Tables, errors_table
from audit.verdicts.copies import copied_images
from audit.verdicts.regions import agreement, region_agreement, region_of, region_png, similarities, thumbnail
from audit.verdicts.thresholds import Threshold
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps import held_out_pairs, image_search, sample_rounds, thresholds
from pipelines.steps.generation import PROMPTS, generate, purpose_of
from pipelines.tables import training_images
from pipelines.tables.blocks import block, blocks

if TYPE_CHECKING:
    from PIL import Image

    from audit.embedding.embedder import Embedder
    from pipelines.engine.worker import Worker

# Number of generations whose regions are compared together; their neighbours are all in memory at the same time.
COMPARED = 64


def run(run: Run) -> None:
    """Write `matches`, choose the thresholds and generate confirmed captions with fresh seeds."""
    config = run.config
    if config.images is None:
        return
    with run.stage("confirm", "generations") as stage:
        match(run, "confirm", ("control", "discover", "pair"))
        image_search.measure(run)
        matches = run.ledger.read("matches")
        limits = thresholds.choose(run, matches)
        if config.select.until is not None:
            sample_rounds.run(run, limits, match)
            matches = run.ledger.read("matches")
        decides = config.confirm.embedders[0]
        confirmed = _confirmed(run.ledger, matches, decides, limits)
        generate(run, "confirm: fresh seeds", {"fresh": confirmed}, config.fresh_seeds())
        match(run, "confirm: their matches", ("fresh",))
        stage.rows_in = run.manifest.refresh("generations")
        stage.rows_out = run.manifest.refresh("matches")


def _confirmed(ledger: Ledger, matches: pa.Table, embedder: str, limits: Mapping[str, Threshold]) -> pa.Table:
    """Return (caption_id, caption) of the captions that copied an image, in the order of the prompts."""
    ids = copied_images(matches, embedder, limits)["caption_id"]
    parts = [part for part in ledger.parts(PROMPTS) if purpose_of(part) == "discover"]
    prompts = pa.concat_tables([ledger.read(PROMPTS, part) for part in parts])
    return prompts.filter(pc.is_in(prompts["caption_id"], value_set=ids.combine_chunks()))


def match(run: Run, title: str, purposes: Sequence[str]) -> None:
    """Match the generations of purposes, or of rounds of sampling, with the training images."""
    shards = [shard for purpose in purposes for shard in _shards(run.ledger, purpose, run.config.engine.shard_rows)]
    needs = tuple(run.config.confirm.embedders)
    run.execute(Step(title, "matches", "generations", run.ledger, _nearest, _on_lost_row, needs), shards)


def _shards(ledger: Ledger, purpose: str, size: int) -> list[Shard]:
    """Group consecutive parts of `generations` into shards of up to `size` rows.

    Each shard scans all embeddings once, so more queries per shard reduce the cost of reading them.
    """
    parts = [part for part in ledger.parts("generations") if part.startswith(f"{purpose}-")]
    return blocks({part: ledger.rows("generations", part) for part in parts}, size, f"{purpose}-")


def _generations(ledger: Ledger, shard: Shard) -> pa.Table:
    columns = ["caption_id", "purpose", "seed", "image", "region", "status"]
    return block(ledger, "generations", shard, columns)


def _nearest(worker: Worker, shard: Shard) -> Tables:
    generations = _generations(worker.ledger, shard)
    generations = generations.filter(pc.equal(generations["status"], "ok"))
    pictures = [decode(content) for content in generations["image"].to_pylist()]
    found = [schema.MATCHES.empty_table()]
    for name in worker.config.confirm.embedders if pictures else ():
        embedder = worker.embedder(name)
        vectors_QE = embedder.embed(pictures)
        near = image_search.find(worker, name, vectors_QE, image_search.NEIGHBOURS)
        if generations["purpose"][0].as_py() == "pair":  # a shard has one purpose
            near = _with_own_images(worker, embedder, generations["caption_id"].to_pylist(), vectors_QE, near)
        decides = name == worker.config.confirm.embedders[0]
        regions = _regions(worker, embedder, generations, pictures, near) if decides else None
        found.append(_table(generations, name, near, regions))
    return {"matches": pa.concat_tables(found)}


def _with_own_images(
    worker: Worker,
    embedder: Embedder,
    caption_ids: Sequence[str],
    vectors_QE: np.ndarray,
    near: image_search.Neighbours,
) -> image_search.Neighbours:
    """Add to the neighbours of held-out captions their own images, as if these were among the training images.

    Each query keeps its number of neighbours, and its own image is always one of them.
    """
    assert worker.config.images is not None
    pairs = worker.ledger.read("held_out_pairs", columns=["caption_id", "image_id"])
    image_of = dict(zip(pairs["caption_id"].to_pylist(), pairs["image_id"].to_pylist(), strict=True))
    ids_Q = [image_of[id_] for id_ in caption_ids]
    turned = training_images.primary(worker.config.images)
    places = training_images.places_of(worker.ledger, ids_Q, held_out_pairs.PLACES)
    pictures = dict(training_images.pictures(worker.config.images, places, [(id_, turned) for id_ in ids_Q]))
    vector_of = dict(zip(pictures, embedder.embed(list(pictures.values())), strict=True))
    own_Q = np.array([vector_of[id_, turned] @ vectors_QE[q] for q, id_ in enumerate(ids_Q)]) - near.background
    own = image_search.Neighbours(
        np.array(ids_Q, object)[:, None], own_Q[:, None], np.full((len(ids_Q), 1), turned, object), near.background
    )
    kept = min(near.ids.shape[1], image_search.NEIGHBOURS - 1)
    ids_QK, similarity_QK, orientation_QK = (
        np.concatenate([mine_Q1, others_QK[:, :kept]], axis=1)
        for mine_Q1, others_QK in zip(own[:3], near[:3], strict=True)
    )
    order_QK = np.argsort(-similarity_QK, axis=1, kind="stable")
    ids_QK, similarity_QK, orientation_QK = (
        np.take_along_axis(column, order_QK, axis=1) for column in (ids_QK, similarity_QK, orientation_QK)
    )
    return image_search.Neighbours(ids_QK, similarity_QK, orientation_QK, near.background)


class Regions(NamedTuple):
    """Hold what comparing pixels found, for generations and their neighbours, row by row [Q x K]; null for NaN."""

    similarity: list[float | None]
    region_agreement: list[float | None]
    pixel_agreement: list[float | None]
    region: list[bytes | None]


def _regions(
    worker: Worker,
    embedder: Embedder,
    generations: pa.Table,
    pictures: Sequence[Image.Image],
    near: image_search.Neighbours,
) -> Regions:
    """Compare each generation with its neighbours: in the region that may be a copy, and pixel by pixel."""
    assert worker.config.images is not None
    found = Regions([], [], [], [])
    ids = near.ids.reshape(-1).tolist()
    places = training_images.places_of(worker.ledger, ids)
    if generations["purpose"][0].as_py() == "pair":
        places |= training_images.places_of(worker.ledger, ids, held_out_pairs.PLACES)
    turned_QK = [list(zip(*row, strict=True)) for row in zip(near.ids.tolist(), near.orientation.tolist(), strict=True)]
    own = [region_of(region) if region else None for region in generations["region"].to_pylist()]
    for start in range(0, len(pictures), COMPARED):
        batch = range(start, min(start + COMPARED, len(pictures)))
        wanted = [image for q in batch for image in turned_QK[q]]
        picture_of = dict(training_images.pictures(worker.config.images, places, wanted))
        pixels_of = {image: thumbnail(picture) for image, picture in picture_of.items()}
        for q in batch:
            neighbours = [picture_of[image] for image in turned_QK[q]]
            pixels_PP3, pixels_K = thumbnail(pictures[q]), [pixels_of[image] for image in turned_QK[q]]
            agreed = [agreement(pixels_PP3, other_PP3) for other_PP3 in pixels_K]
            region_TT = own[q]
            alike_K = agreed_K = np.full(len(neighbours), np.nan)
            if region_TT is not None:
                alike_K = similarities(embedder, pictures[q], region_TT, neighbours)
                agreed_K = np.array([region_agreement(pixels_PP3, other_PP3, region_TT) for other_PP3 in pixels_K])
            for column, values_K in ((found.similarity, alike_K), (found.region_agreement, agreed_K)):
                column.extend(None if np.isnan(value) else float(value) for value in values_K)
            found.pixel_agreement.extend(float(where_TT.mean()) for where_TT in agreed)
            found.region.extend(map(region_png, agreed))
    return found


def _table(generations: pa.Table, embedder: str, near: image_search.Neighbours, regions: Regions | None) -> pa.Table:
    count, k = near.ids.shape
    of_R = pa.array(np.repeat(np.arange(count), k))
    nothing = [None] * (count * k)
    columns = {name: generations[name].take(of_R) for name in ("caption_id", "purpose", "seed")} | {
        "embedder": pa.repeat(embedder, count * k),
        "rank": pa.array(np.tile(np.arange(1, k + 1), count)),
        "image_id": pa.array(near.ids.reshape(-1).tolist(), pa.string()),
        "orientation": pa.array(near.orientation.reshape(-1).tolist(), pa.string()),
        "similarity": pa.array(near.similarity.reshape(-1).astype(np.float64)),
        "background": pa.array(np.repeat(near.background.astype(np.float64), k)),
        "region_similarity": pa.array(regions.similarity if regions else nothing, pa.float64()),
        "region_agreement": pa.array(regions.region_agreement if regions else nothing, pa.float64()),
        "pixel_agreement": pa.array(regions.pixel_agreement if regions else nothing, pa.float64()),
        "region": pa.array(regions.region if regions else nothing, pa.binary()),
    }
    return pa.table([columns[name] for name in schema.MATCHES.names], schema=schema.MATCHES)


def _on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    [row] = _generations(ledger, shard).to_pylist()
    error = {"stage": "confirm", "caption_id": row["caption_id"], "kind": kind, "message": message}
    return {"matches": schema.MATCHES.empty_table(), "errors": errors_table([error])}
