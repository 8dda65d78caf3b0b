"""The rules of the guard, each against a memory that is written out."""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import torch
from torch import Tensor

from audit.detectors.entropy import entropy
from audit.mitigation.guard_rules import REFRESH, REMEMBERED, ControlDistance, EntropyQuantile, FixedEntropy, _features


def attention(size: int, generator: torch.Generator, sharpness: Tensor | float = 1.0) -> Tensor:
    """Random attention of 3 layers over 6 positions: [B, 3, 6]."""
    return (sharpness * torch.randn(size, 3, 6, generator=generator)).softmax(-1)


def test_the_fixed_limit_is_on_the_entropy_of_the_layers_averaged() -> None:
    attn_BLK = attention(5, torch.Generator().manual_seed(0))
    score_B, limit_B = FixedEntropy(1.5)(attn_BLK, torch.zeros(5, dtype=torch.long))
    mean_BK = attn_BLK.double().mean(1)
    torch.testing.assert_close(score_B, -(mean_BK * mean_BK.log()).sum(1), atol=1e-6, rtol=0)
    assert limit_B.tolist() == [1.5] * 5


def test_the_quantile_is_of_the_samples_before_in_the_same_tenth_of_the_timesteps() -> None:
    rule = EntropyQuantile(0.9, warmup=20)
    memory = [deque[float](maxlen=REMEMBERED) for _ in range(10)]
    generator = torch.Generator().manual_seed(0)
    silenced = seen = 0
    for step in range(800):
        tenth_B = torch.randint(10, (32,), generator=generator)
        attn_BLK = attention(32, generator, 1 + tenth_B[:, None, None] / 10)
        if step % REFRESH == 0:
            limits = [np.quantile(np.float32(m), 0.9) if len(m) >= 20 else math.inf for m in memory]
        score_B, limit_B = rule(attn_BLK, tenth_B)
        np.testing.assert_allclose(limit_B, np.array(limits)[tenth_B], atol=1e-6)
        for tenth, value in zip(tenth_B.tolist(), score_B.tolist(), strict=True):
            memory[tenth].append(value)
        silenced, seen = silenced + int((score_B > limit_B).sum()), seen + 32
    assert max(map(len, memory)) == REMEMBERED  # old ones were forgotten
    assert 0.09 < silenced / seen < 0.11


def test_null_samples_are_silenced_as_often_as_the_quantile_says_and_others_more() -> None:
    rule, generator = ControlDistance(0.95), torch.Generator().manual_seed(0)
    for _ in range(12):
        tenth_B = torch.arange(32) % 10
        rule.learn(attention(32, generator, 1 + tenth_B[:, None, None] / 10), tenth_B)
    tenth_B = torch.arange(2000) % 10
    like_unconditional_B, limit_B = rule(attention(2000, generator, 1 + tenth_B[:, None, None] / 10), tenth_B)
    assert 0.02 < (like_unconditional_B > limit_B).double().mean() < 0.08
    unlike_B, limit_B = rule(attention(2000, generator, 4.0), tenth_B)
    assert (unlike_B > limit_B).double().mean() > 0.5


def test_nothing_is_silenced_before_there_are_null_samples_enough() -> None:
    rule, generator = ControlDistance(0.95), torch.Generator().manual_seed(0)
    tenth_B = torch.arange(32) % 10
    for _ in range(4):
        rule.learn(attention(32, generator), tenth_B)
        _, limit_B = rule(attention(32, generator, 9.0), tenth_B)
        assert limit_B.isinf().all()
    for _ in range(8):
        rule.learn(attention(20, generator), torch.zeros(20, dtype=torch.long) + 3)  # all of one tenth
    for _ in range(8):
        rule.learn(attention(20, generator), torch.arange(20) % 5)  # the upper tenths stay unknown
    _, limit_B = rule(attention(10, generator), torch.arange(10))
    assert limit_B[:5].isfinite().all()
    assert limit_B[5:].isinf().all()


def test_the_null_of_a_tenth_is_that_of_the_newest_samples() -> None:
    """A model that changes as it trains is measured by what it is now."""
    rule, generator = ControlDistance(0.95), torch.Generator().manual_seed(0)
    tenth_B = torch.arange(40) % 10
    for sharpness in (1.0, 4.0):
        for _ in range(12):
            rule.learn(attention(40, generator, sharpness), tenth_B)
        score_B, limit_B = rule(attention(400, generator, sharpness), torch.arange(400) % 10)
        assert (score_B > limit_B).double().mean() < 0.1


def test_distances_are_those_of_the_written_out_formula() -> None:
    rule, generator = ControlDistance(0.5), torch.Generator().manual_seed(0)
    for _ in range(20):
        rule.learn(attention(40, generator), torch.arange(40) % 10)
    attn_BLK = attention(10, generator)
    score_B, _ = rule(attn_BLK, torch.arange(10))
    centre, inverse, median, scale, precision, _ = (tensor.numpy() for tensor in rule._fitted)
    bos_BL = attn_BLK[..., 0].double().numpy()
    rest_BL = entropy(attn_BLK[..., 1:].double() / attn_BLK[..., 1:].double().sum(-1, keepdim=True)).numpy()
    for i, features_F in enumerate(np.concatenate([np.log(bos_BL / (1 - bos_BL)), rest_BL], 1)):
        z_F = ((features_F - centre[i]) * inverse[i] - median) * scale
        np.testing.assert_allclose(score_B[i], np.sqrt(z_F @ precision @ z_F), rtol=1e-4)


def test_the_profile_is_the_logit_of_bos_and_the_entropy_of_the_rest_renormalised() -> None:
    attn_NLK = torch.tensor([[[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]], dtype=torch.float64)
    expected = [np.log(0.7 / 0.3), 0.0, -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)), np.log(2)]
    found = _features(attn_NLK)
    np.testing.assert_allclose(found.numpy(), [expected], atol=1e-12)
