"""Screen captions in a worker, and record those that cannot be screened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.record.ledger import errors_table

if TYPE_CHECKING:
    from pipelines.engine.worker import Worker


def screen_texts(worker: Worker, captions: pa.Table, stage: str) -> tuple[pa.Table, pa.Table]:
    """Screen captions with the worker's model.

    Args:
        worker: The worker.
        captions: The captions (caption_id, caption).
        stage: The stage to name in `errors`.

    Returns:
        The rows of `screen`, and the rows of `errors` for captions without finite values.
    """
    import audit

    config = worker.config.screen
    found = audit.screen(
        worker.model,
        captions["caption"].to_pylist(),
        config.seeds,
        config.detectors,
        config.batch_size,
        worker.reference,
        resolution=config.pixels(),
        unconditional=worker.unconditional,
    )
    ids = captions["caption_id"].take(pa.array(np.repeat(np.arange(len(captions)), len(config.seeds))))
    layout = schema.screen(schema.features_of(found.schema)).with_metadata(found.schema.metadata)
    table = found.drop_columns("caption").add_column(0, "caption_id", ids).select(layout.names).cast(layout)
    bad = table.filter(pc.equal(table["status"], "error"))
    first = dict(zip(bad["caption_id"].to_pylist(), bad["error"].to_pylist(), strict=True))
    errors = [screen_errors(stage, [id_], "not_finite", message) for id_, message in first.items()]
    return table, pa.concat_tables([errors_table([]), *errors])


def screen_errors(stage: str, caption_ids: Sequence[str], kind: str, message: str) -> pa.Table:
    """Return one row of `errors` per caption.

    Args:
        stage: The stage that failed.
        caption_ids: The captions.
        kind: The kind of the error.
        message: What went wrong.

    Returns:
        A table of schema ERRORS.
    """
    return errors_table([{"stage": stage, "caption_id": id_, "kind": kind, "message": message} for id_ in caption_ids])


def failed_rows(layout: pa.Schema, captions: pa.Table, seeds: Sequence[int], message: str) -> pa.Table:
    """Return one row with status "error" for each caption and seed.

    Args:
        layout: The schema of the rows. Columns without a known value are null.
        captions: The captions, with any columns that the rows should keep.
        seeds: The seeds.
        message: What went wrong.

    Returns:
        A table of schema `layout`.
    """
    known = [name for name in layout.names if name in captions.column_names]
    rows = [
        {name: caption[name] for name in known} | {"seed": seed, "status": "error", "error": message}
        for caption in captions.to_pylist()
        for seed in seeds
    ]
    return pa.Table.from_pylist([{name: row.get(name) for name in layout.names} for row in rows], schema=layout)
