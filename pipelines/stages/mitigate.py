"""Mitigate: generate confirmed and ordinary captions with and without mitigation, and measure each setting."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.images.decoding import decode
from audit.mitigation.effect import summarize
from audit.mitigation.serving import PLAIN, Setting, serve
from audit.record.ledger import Ledger, Shard, Tables, errors_table
from audit.record.manifest_entries import MitigationBasis
from audit.verdicts.copies import above_floor, beyond, region_copies
from audit.verdicts.regions import region_agreement, region_of, similarities, thumbnail
from audit.verdicts.thresholds import Threshold
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps import image_search, thresholds
from pipelines.steps.mitigation_captions import MitigationPlan, confirmed_captions, digest, ordinary_captions
from pipelines.tables.mitigation import CAPTIONS, MEASURED, SUMMARY, VECTORS

if TYPE_CHECKING:
    from PIL import Image

    from pipelines.engine.worker import Worker

# Shapes: R images of a shard (captions x seeds, caption-major), E embedding width.

# The columns that name a part of MEASURED, and a row of SUMMARY.
_KEY = ("caption_set", "method", "settings")
_VECTORS = pa.schema([("vector", pa.list_(pa.float32()))])


def run(run: Run, plan: MitigationPlan) -> pa.Table:
    """Measure the settings that were not measured yet, and return the summary of all measured settings.

    Raises AuditError if no caption is confirmed, or if the run no longer has the images to compare with.
    """
    captions_of = {"confirmed": confirmed_captions(run, plan), "ordinary": ordinary_captions(run, plan)}
    limits = thresholds.load(run)
    _forget_others(run, plan, captions_of)
    _forget_unfinished(run.ledger)
    for caption_set, captions in captions_of.items():
        run.ledger.write(CAPTIONS, caption_set, captions)
    with run.stage("mitigate", "images") as stage:
        shards = [
            Shard(f"{caption_set}-{setting.slug}", (caption_set, setting), 0, len(captions))
            for setting in plan.settings
            for caption_set, captions in captions_of.items()
            if len(captions)
        ]
        work, on_lost_row = partial(_measure, seeds=plan.seeds, limits=limits), _on_lost_row
        clip = ("clip",) if run.config.confirm.clip else ()
        needs = tuple(dict.fromkeys(("model", run.config.confirm.embedders[0], *clip)))
        run.execute(Step("mitigate", MEASURED, "captions", run.ledger, work, on_lost_row, needs, addition=True), shards)
        parts = run.ledger.parts(MEASURED)
        stage.rows_in = sum(len(captions_of[part.partition("-")[0]]) for part in parts) * len(plan.seeds)
        stage.rows_out = run.manifest.refresh(MEASURED)
        summary = _summary(run.ledger)
        run.ledger.write(SUMMARY, "00000", summary)
        run.manifest.part(SUMMARY, "00000", len(summary))
    return summary


def _forget_others(run: Run, plan: MitigationPlan, captions_of: dict[str, pa.Table]) -> None:
    """Remove measurements with other captions, seeds or CLIP weights, which are not comparable."""
    ledger, clip = run.ledger, run.config.confirm.clip
    basis = MitigationBasis(
        seeds=list(plan.seeds),
        clip=clip.weights if clip else None,
        confirmed=len(captions_of["confirmed"]),
        ordinary=len(captions_of["ordinary"]),
        captions_sha256=digest(captions_of),
    )
    if run.manifest.data.mitigation == basis:
        return
    if ledger.parts(MEASURED):
        run.progress.say("mitigate: removing earlier measurements, which used other captions, seeds or CLIP weights")
    for table in (MEASURED, SUMMARY):
        for part in ledger.parts(table):
            ledger.remove(table, part)
    for part in ledger.parts("errors"):
        if part.startswith(f"{MEASURED}-"):
            ledger.remove("errors", part)
    for table in (MEASURED, SUMMARY, "errors"):
        run.manifest.refresh(table)
    run.manifest.data.stages.pop("mitigate", None)
    if run.manifest.data.resolved["confirm"]["clip"] is None:
        run.manifest.data.models.pop("clip", None)  # it came from an earlier --clip
    run.manifest.data.mitigation = basis
    run.manifest.write()


def _forget_unfinished(ledger: Ledger) -> None:
    """Remove measurements that were interrupted before they were summarized, and have lost their vectors."""
    summarized, vectors = _summarized(ledger), ledger.parts(VECTORS)
    for part, measured in ledger.each(MEASURED, list(_KEY)):
        if len(measured) and part not in vectors and _key(measured) not in summarized:
            ledger.remove(MEASURED, part)


def _measure(worker: Worker, shard: Shard, seeds: Sequence[int], limits: dict[str, Threshold]) -> Tables:
    caption_set, setting = shard.source
    captions = worker.ledger.slice(CAPTIONS, caption_set, shard.start, shard.stop)
    served, of_R = _serve(worker, captions["caption"].to_pylist(), seeds, setting)
    rows = captions.take(pa.array(of_R))
    finite = pc.is_valid(served["image"])
    errors = [_error(id_, "not_finite", f"{setting}: the image is not finite") for id_ in _ids(rows, pc.invert(finite))]
    served, rows = served.filter(finite), rows.filter(finite)
    if not len(rows):
        return _nothing(errors)
    pictures = [decode(content) for content in served["image"].to_pylist()]
    embedder = worker.embedder(worker.config.confirm.embedders[0])
    vectors_RE = embedder.embed(pictures)
    neighbours = image_search.find(worker, embedder.name, vectors_RE, 1)
    nearest_R = neighbours.similarity[:, 0].astype(np.float64)
    similarity_R, region_R, agreed_R = nearest_R, *np.full((2, len(rows)), np.nan)
    if caption_set == "confirmed":
        similarity_R, region_R, agreed_R = _similarities(worker, rows, pictures, vectors_RE)
        similarity_R -= neighbours.background
    found = pa.table(
        {
            "similarity": pa.array(np.maximum(similarity_R, nearest_R)),
            "background": pa.array(neighbours.background.astype(np.float64)),
            "region_similarity": pa.array(region_R, mask=np.isnan(region_R)),
            "region_agreement": pa.array(agreed_R, mask=np.isnan(agreed_R)),
        }
    )
    above_R = beyond(found, "verbatim", limits["verbatim"]) | region_copies(found, limits["region"])
    near_R = np.logical_or(*(above_floor(found, kind, limits[kind]) for kind in ("verbatim", "region")))
    kept = pc.fill_null(pc.equal(rows["shown_seed"], served["seed"]), False)
    columns = {
        **{name: rows[name] for name in ("caption_id", "caption", "verdict", "image_id")},
        **{name: served[name] for name in ("seed", "seconds")},
        "caption_set": pa.repeat(caption_set, len(rows)),
        "method": pa.repeat(setting.name, len(rows)),
        "settings": pa.repeat(setting.settings, len(rows)),
        "similarity": pa.array(similarity_R),
        "region_similarity": pa.array(region_R, mask=np.isnan(region_R)),
        "nearest_image_id": pa.array(neighbours.ids[:, 0].tolist(), pa.string()),
        "nearest_similarity": pa.array(nearest_R),
        "is_copy": pa.array(above_R),
        "near_miss": pa.array(near_R & ~above_R),
        "clip_score": _clip_scores(worker, rows["caption"].to_pylist(), pictures),
        "image": pc.if_else(kept, served["image"], pa.scalar(None, pa.binary())),
    }
    measured = pa.table([columns[name] for name in schema.MITIGATION.names], schema=schema.MITIGATION)
    vectors = pa.table({"vector": pa.array(list(vectors_RE), _VECTORS.field("vector").type)}, schema=_VECTORS)
    return {MEASURED: measured, VECTORS: vectors, "errors": errors_table(errors)}


def _serve(
    worker: Worker, captions: Sequence[str], seeds: Sequence[int], setting: Setting
) -> tuple[pa.Table, np.ndarray]:
    """Return the images of captions x seeds, and the index of each image's caption [R].

    The first call in a process is preceded by an untimed warm-up.
    """
    config = worker.config.generate
    if "warm" not in worker.cache:
        serve(worker.model, captions[:1], seeds[:1], 1, config.guidance_scale, PLAIN)
        worker.cache["warm"] = True
    served = serve(
        worker.model, captions, seeds, config.steps, config.guidance_scale, setting, batch_size=config.batch_size
    )
    return served, np.repeat(np.arange(len(captions)), len(seeds))


def _similarities(
    worker: Worker, rows: pa.Table, pictures: Sequence[Image.Image], vectors_RE: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare each image with the training image of the verdict.

    Returns:
        Similarity [R], and region similarity [R] and region agreement [R], which are NaN unless the verdict is partial.
    """
    embedder = worker.embedder(worker.config.confirm.embedders[0])
    regions = rows["region"].to_pylist()
    reference_of = dict(zip(rows["image_id"].to_pylist(), rows["reference"].to_pylist(), strict=True))
    references = {id_: decode(content) for id_, content in reference_of.items()}
    vector_of = dict(zip(references, embedder.embed(list(references.values())), strict=True))
    ids_R = rows["image_id"].to_pylist()
    similarity_R = np.array([vector_of[id_] @ vectors_RE[r] for r, id_ in enumerate(ids_R)], dtype=np.float64)
    region_R, agreed_R = np.full((2, len(rows)), np.nan)
    for r, id_ in enumerate(ids_R):
        if regions[r] is not None:
            region_TT, reference = region_of(regions[r]), references[id_]
            [region_R[r]] = similarities(embedder, pictures[r], region_TT, [reference])
            agreed_R[r] = region_agreement(thumbnail(pictures[r]), thumbnail(reference), region_TT)
    return similarity_R, region_R, agreed_R


def _clip_scores(worker: Worker, captions: Sequence[str], pictures: Sequence[Image.Image]) -> pa.Array:
    """Return the cosine similarity of each image and its caption, or nulls without a CLIP that reads captions."""
    clip = worker.embedder("clip") if worker.config.confirm.clip else None
    if clip is None or clip.encode_text is None:
        return pa.nulls(len(captions), pa.float64())
    scores_R = (clip.embed(pictures) * clip.embed_texts(captions)).sum(axis=1)
    return pa.array(scores_R.astype(np.float64))


def _on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    caption_set, setting = shard.source
    [row] = ledger.slice(CAPTIONS, caption_set, shard.start, shard.stop, ["caption_id"]).to_pylist()
    return _nothing([_error(row["caption_id"], kind, f"{setting}: {message}")])


def _nothing(errors: Sequence[dict[str, Any]]) -> Tables:
    empty = {MEASURED: schema.MITIGATION.empty_table(), VECTORS: _VECTORS.empty_table()}
    return empty | {"errors": errors_table(errors)}


def _ids(rows: pa.Table, which: pa.ChunkedArray) -> list[str]:
    return rows.filter(which)["caption_id"].to_pylist()


def _error(caption_id: str, kind: str, message: str) -> dict[str, Any]:
    return {"stage": "mitigate", "caption_id": caption_id, "kind": kind, "message": message[:300]}


def _summary(ledger: Ledger) -> pa.Table:
    """Summarize each caption set and setting with images, PLAIN first, then by method and settings.

    Vectors are a working table. The measurements of an earlier command have none any more, and keep their summary.
    """
    columns = [name for name in schema.MITIGATION.names if name != "image"]
    summarized, vectors_of = _summarized(ledger), ledger.parts(VECTORS)
    found = []
    for part, measured in ledger.each(MEASURED, columns):
        if len(measured) and part in vectors_of:
            vectors = np.stack(ledger.read(VECTORS, part)["vector"].to_pylist()).astype(np.float32)
            found.append(dict(zip(_KEY, _key(measured), strict=True)) | summarize(measured, vectors))
        elif len(measured):
            found.append(summarized[_key(measured)])
    order = {word: number for number, word in enumerate(schema.METHOD_WORDS)}
    found.sort(key=lambda row: (row["caption_set"], order[row["method"]], row["settings"]))
    return pa.Table.from_pylist(found, schema=schema.MITIGATION_SUMMARY)


def _summarized(ledger: Ledger) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Return the rows of the summary by _KEY."""
    rows = ledger.read(SUMMARY).to_pylist() if ledger.parts(SUMMARY) else []
    return {tuple(row[name] for name in _KEY): row for row in rows}


def _key(measured: pa.Table) -> tuple[Any, ...]:
    """Return the caption set and setting of a part of MEASURED."""
    return tuple(measured[name][0].as_py() for name in _KEY)
