from __future__ import annotations

import math

import torch

from audit.detectors.entropy import entropy, summary_entropy


def test_uniform_attention_has_the_entropy_of_its_length_and_certainty_has_none() -> None:
    attn_BK = torch.stack([torch.full((8,), 1 / 8), torch.eye(8)[3]])
    torch.testing.assert_close(entropy(attn_BK), torch.tensor([math.log(8), 0.0], dtype=torch.float64))


def test_it_is_taken_in_float64() -> None:
    assert entropy(torch.full((2, 3, 77), 1 / 77)).dtype == torch.float64


def test_the_summary_part_starts_at_eos_and_is_not_renormalised() -> None:
    attn_BK = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1]])
    found = summary_entropy(attn_BK, torch.tensor([3, 4]))  # EOS at 2, at 3
    expected = [-(0.2 * math.log(0.2) + 0.1 * math.log(0.1)), -0.1 * math.log(0.1)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-7, rtol=0)
