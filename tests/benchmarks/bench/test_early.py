"""Responses inside the UNet are measured beside that of its output, which is `caption_response`."""

from __future__ import annotations

import pytest

import audit
from benchmarks.planted.bench import early
from tests.support.toy import MODEL

CAPTIONS = [f"a picture of {number} ships" for number in range(5)]


@pytest.fixture(scope="module")
def model() -> audit.Model:
    return audit.load_model(MODEL)


def test_the_response_of_the_output_is_the_default_detector_and_earlier_parts_differ(model: audit.Model) -> None:
    table = early.measure(model, CAPTIONS, seed=0, batch=2)
    expected = audit.screen(model, CAPTIONS)["caption_response"].to_pylist()
    assert table[early.WHOLE].to_pylist() == pytest.approx(expected, abs=1e-4)
    parts = len(early.parts(model.pipeline().unet))
    assert table.num_columns == 1 + 2 * parts * len(early.TIMESTEPS)
    first = table.column_names.index(f"inner {early.WHOLE}")
    assert table.column(first).to_pylist() != pytest.approx(expected, abs=1e-2)
