"""Generate images of captions, with their scores and the regions to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.images.decoding import decode
from audit.record.ledger import Ledger, Shard, Tables, errors_table, slices
from audit.verdicts.regions import bright, common, region_png, thumbnail
from pipelines.engine.context import Run
from pipelines.engine.step import Step
from pipelines.steps.screening import failed_rows

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker


# Working table: the captions to generate, one part per purpose.
PROMPTS = "_prompts"


# The captions of a round of sampling are the part ROUND + number; their purpose is `discover`.
ROUND = "sample."

# Generating an image costs tens of times as much as screening, so shards are smaller by this factor.
SMALLER = 8


def generate(run: Run, title: str, captions_of: Mapping[str, pa.Table], seeds: Sequence[int]) -> None:
    """Generate images and write them to `generations`.

    Args:
        run: The run.
        title: The name of the step, as shown to the user.
        captions_of: The captions (caption_id, caption) of each purpose, or of a round of sampling.
        seeds: The seeds with which each caption is generated.
    """
    shards = []
    for purpose, captions in captions_of.items():
        run.ledger.write(PROMPTS, purpose, captions)
        size = max(1, run.config.engine.shard_rows // SMALLER)
        shards += slices(purpose, purpose, len(captions), size)
    work, on_lost_row = partial(_generate, seeds=seeds), partial(_on_lost_row, seeds=seeds)
    step = Step(title, "generations", "captions", run.ledger, work, on_lost_row, ("model",))
    run.execute(step, shards if seeds else [])


def purpose_of(prompts: str) -> str:
    """Return the purpose of the captions in a part of PROMPTS."""
    return "discover" if prompts.startswith(ROUND) else prompts


def _generate(worker: Worker, shard: Shard, seeds: Sequence[int]) -> Tables:
    import audit

    config = worker.config.generate
    captions = worker.ledger.slice(PROMPTS, shard.source, shard.start, shard.stop)
    found = audit.generate(
        worker.model,
        captions["caption"].to_pylist(),
        seeds=seeds,
        steps=config.steps,
        guidance_scale=config.guidance_scale,
        detectors=config.detectors,
        batch_size=config.batch_size,
    )
    layout = schema.generations(schema.features_of(found.schema)).with_metadata(found.schema.metadata)
    columns = {name: found[name] for name in layout.names if name in found.column_names} | {
        "caption_id": captions["caption_id"].take(pa.array(np.repeat(np.arange(len(captions)), len(seeds)))),
        "purpose": pa.repeat(purpose_of(shard.source), len(found)),
        "region": _regions(found, len(seeds)),
    }
    table = pa.table([columns[name] for name in layout.names], schema=layout)
    bad = table.filter(pc.equal(table["status"], "error"))
    errors = [
        {"stage": "generate", "caption_id": id_, "kind": "not_finite", "message": message}
        for id_, message in zip(bad["caption_id"].to_pylist(), bad["error"].to_pylist(), strict=True)
    ]
    return {"generations": table, "errors": errors_table(errors)}


def _regions(found: pa.Table, seeds: int) -> pa.Array:
    """Return the region of each generation that may be a copy, as a PNG mask; null if it is unknown.

    The region is where a generation agrees with the caption's other generations. If `bright_ending` recorded a map,
    the region must be bright there too.
    """
    images: list[bytes | None] = found["image"].to_pylist()
    attention: list[bytes | None] = [None] * len(images)
    if "region" in found.column_names:
        attention = found["region"].to_pylist()
    regions: list[bytes | None] = [None] * len(images)
    for start in range(0, len(images), seeds):
        rows = [row for row in range(start, start + seeds) if images[row] is not None]
        if not rows:
            continue
        common_STT = common(np.stack([thumbnail(decode(images[row])) for row in rows]))
        for row, region_TT in zip(rows, common_STT, strict=True):
            bright_at_end = attention[row]
            if bright_at_end is not None:
                regions[row] = region_png(region_TT & bright(bright_at_end))
            elif len(rows) > 1:
                regions[row] = region_png(region_TT)
    return pa.array(regions, pa.binary())


def _on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str, seeds: Sequence[int]) -> Tables:
    captions = ledger.slice(PROMPTS, shard.source, shard.start, shard.stop)
    captions = captions.append_column("purpose", pa.repeat(purpose_of(shard.source), len(captions)))
    rows = [
        {"stage": "generate", "caption_id": id_, "kind": kind, "message": message}
        for id_ in captions["caption_id"].to_pylist()
    ]
    return {
        "generations": failed_rows(schema.generations(()), captions, seeds, message),
        "errors": errors_table(rows),
    }
