from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from audit.mitigation.text_keys import HiddenKeys

VISIBLE = torch.tensor([[True, False], [True, True]])  # two text keys, behind three keys of the image
ADDED = torch.tensor([0.0, -torch.inf, 0.5, 0.0, 0.0]).expand(1, 1, 4, 5)


@pytest.mark.parametrize(
    ("given", "logits"),
    [(None, torch.zeros(5)), (ADDED.isfinite(), ADDED[0, 0, 0].clamp(max=0)), (ADDED, ADDED[0, 0, 0])],
    ids=["none", "boolean", "added"],
)
def test_text_keys_are_hidden_beside_those_that_a_mask_hides(given: Any, logits: Tensor) -> None:
    key_BHKD = torch.randn(2, 3, 5, 4)
    mask = HiddenKeys([], slice(-2, None), VISIBLE).mask(given, key_BHKD)
    mask = mask.float().log() if mask.dtype == torch.bool else mask
    expected = logits.repeat(2, 1)
    expected[0, 4] = -torch.inf
    torch.testing.assert_close(mask.expand(2, 3, 4, 5), expected[:, None, None].expand(2, 3, 4, 5))
