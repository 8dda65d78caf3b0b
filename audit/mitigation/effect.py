"""Summarise the effect of a mitigation setting in one row: copies left, fidelity to the caption, diversity, time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from audit.statistics.intervals import clopper_pearson

# Shapes: N images, E embedding width.


def summarize(measured: pa.Table, vectors_NE: np.ndarray) -> dict[str, Any]:
    """Summarise the measurements of one caption set and setting: a row of `schema.MITIGATION_SUMMARY` without its key.

    As for a verdict, a caption counts as above the threshold if any of its images is. The interval is the 95 %
    Clopper-Pearson interval over captions.

    Args:
        measured: One row per image.
        vectors_NE: Unit vectors of the images.
    """
    of_caption = measured.group_by("caption_id").aggregate([("is_copy", "any"), ("near_miss", "any")])
    captions, above = len(of_caption), int(pc.sum(of_caption["is_copy_any"]).as_py() or 0)
    near = pc.and_(of_caption["near_miss_any"], pc.invert(of_caption["is_copy_any"]))
    low, high = clopper_pearson(above, captions) if captions else (None, None)
    return {
        "captions": captions,
        "images": len(measured),
        "captions_above": above,
        "captions_near": int(pc.sum(near).as_py() or 0),
        "share_above": above / captions if captions else None,
        "share_above_low": low,
        "share_above_high": high,
        "median_similarity": _median(measured["similarity"]),
        "clip_score": pc.mean(measured["clip_score"]).as_py(),
        "diversity": diversity(vectors_NE),
        "seconds_per_image": _median(measured["seconds"]),
    }


def diversity(vectors_NE: np.ndarray) -> float | None:
    """Compute the mean of 1 - inner product over all pairs of unit vectors [N, E]; None for fewer than two vectors."""
    count = len(vectors_NE)
    if count < 2:
        return None
    vectors_NE = vectors_NE.astype(np.float64)
    total_E = vectors_NE.sum(axis=0)
    return float(1 - (total_E @ total_E - (vectors_NE**2).sum()) / (count * (count - 1)))


def _median(column: pa.ChunkedArray) -> float | None:
    values = column.drop_null().to_numpy()
    return float(np.median(values)) if len(values) else None
