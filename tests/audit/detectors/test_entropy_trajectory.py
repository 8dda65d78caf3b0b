from __future__ import annotations

import numpy as np
import pytest
import torch

from audit.detectors.detector import TrajectoryStep
from audit.detectors.entropy_trajectory import EntropyTrajectory


@pytest.mark.parametrize(("steps", "last"), [(1, 1), (4, 1), (10, 2), (19, 3), (50, 10)])
def test_it_is_the_formula_written_out(steps: int, last: int) -> None:
    attn_TBLK = np.random.default_rng(0).dirichlet(np.ones(7), size=(steps, 2, 3))
    prompt_tokens_B = [4, 6]
    run = EntropyTrajectory(torch.tensor(prompt_tokens_B), steps)
    for step, attn_BLK in enumerate(attn_TBLK):
        run.observe(step, TrajectoryStep(torch.from_numpy(attn_BLK)))
    found = run.result()
    for row, prompt_tokens in enumerate(prompt_tokens_B):
        attn_TK = attn_TBLK[:, row].mean(1)
        entropy_T = -(attn_TK * np.log(attn_TK)).sum(1)
        summary_TK = attn_TK[:, prompt_tokens - 1 :]
        summary_T = -(summary_TK * np.log(summary_TK)).sum(1)
        change = summary_T[-last:].mean() - summary_T[0]
        expected = {
            "entropy_trajectory": entropy_T[-last:].mean() + abs(change),
            "entropy_trajectory_signed": entropy_T[-last:].mean() + change,
            "entropy_last": entropy_T[-last:].mean(),
            "summary_change": change,
            "entropy_steps": entropy_T,
            "token_attention": attn_TK[-last:].mean(0),
        }
        assert set(found) == set(expected) == set(EntropyTrajectory.columns)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][row], value, atol=1e-12, err_msg=name)
