"""The rule that says "reproduced": nearest of all, and at most half as far as the nearest other."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.planted.evaluate import reproduced

IMAGES = np.stack([np.full((2, 2, 3), value, np.float32) for value in (0.0, 0.3, 1.0)])


@pytest.mark.parametrize(
    ("value", "own", "expected"),
    [
        (0.0, 0, True),
        (0.09, 0, True),  # 0.09 from its own, 0.21 from the nearest other
        (0.11, 0, False),  # nearest, but more than half as far as the other
        (0.29, 0, False),  # another image is nearest
        (0.9, 2, True),
    ],
)
def test_a_copy_is_nearest_by_a_factor_of_two(value: float, own: int, expected: bool) -> None:
    assert reproduced(np.full((2, 2, 3), value, np.float32), own, IMAGES) is expected
