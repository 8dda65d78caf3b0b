"""A map agrees with a template's region as far as its highest pixels lie in it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.planted.bench.masks import compare


def png(values: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


# Where the region is darker than the rest, the 40 highest pixels tie with it: all 64 pixels count.
@pytest.mark.parametrize(("upper", "auroc", "iou"), [(200, 1.0, 1.0), (0, 0.0, 40 / 64)])
def test_a_map_is_compared_with_the_upper_five_eighths(tmp_path: Path, upper: int, auroc: float, iou: float) -> None:
    values = np.full((8, 8), 100)
    values[:5] = upper
    truth = {"caption": ["copy", "other"], "pixels_region": [True, False], "seed": [1, 1]}
    runs = {"caption": ["copy", "other"], "region": [png(values)] * 2, "difference_region": [png(values)] * 2}
    pq.write_table(pa.table(truth), tmp_path / "truth.parquet")
    pq.write_table(pa.table(runs), tmp_path / "runs.parquet")
    found = compare(tmp_path)
    assert found["generations"] == 1
    assert found["region"] == {"auroc": auroc, "iou": pytest.approx(iou)}
