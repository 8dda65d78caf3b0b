"""Score the entropy along a full run (arXiv 2403.11052, equation 5), and report its parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from audit.detectors.detector import Columns, TrajectoryStep
from audit.detectors.entropy import entropy, summary_entropy

if TYPE_CHECKING:
    from torch import Tensor


class EntropyTrajectory:
    """Compute the mean of `H(a_t)` over the last fifth of the steps, plus the change of the summary tokens' entropy.

    `a_t` is averaged over all layers. A larger score is more suspicious. Columns:

    - `entropy_last`: mean of `H(a_t)` over the last fifth of the steps.
    - `summary_change`: mean of `H_S(a_t)` over the last fifth, minus `H_S(a_first)` at the first step.
    - `entropy_trajectory`: `entropy_last` plus the absolute value of `summary_change` (the paper).
    - `entropy_trajectory_signed`: `entropy_last` plus `summary_change` itself (the paper's released code).
    - `entropy_steps`: `H(a_t)` of each step.
    - `token_attention`: mean of `a_t` over the last fifth.
    """

    name: ClassVar[str] = "entropy_trajectory"
    version: ClassVar[int] = 1
    columns: ClassVar[tuple[str, ...]] = (
        "entropy_trajectory",
        "entropy_trajectory_signed",
        "entropy_last",
        "summary_change",
        "entropy_steps",
        "token_attention",
    )
    scores: ClassVar[tuple[str, ...]] = ("entropy_trajectory", "entropy_trajectory_signed")
    source: ClassVar[str] = "Ren et al., ECCV 2024 (arXiv 2403.11052), equation 5"
    cost: ClassVar[str] = "a generation"
    needs_attention: ClassVar[bool] = True
    needs_response: ClassVar[bool] = False
    needs_end: ClassVar[bool] = False

    def __init__(self, prompt_tokens_B: Tensor, steps: int) -> None:
        import torch

        self._prompt_tokens_B = prompt_tokens_B
        self._last = max(1, steps // 5)
        self._from = steps - self._last
        self._entropy_steps: list[Tensor] = []
        self._summary_first_B = self._summary_sum_B = self._attn_sum_BK = torch.zeros(())

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        """Record what one step showed."""
        import torch

        assert seen.attn_BLK is not None
        attn_BK = seen.attn_BLK.double().mean(1)
        self._entropy_steps.append(entropy(attn_BK))
        if step not in (0, *range(self._from, self._from + self._last)):
            return
        summary_B = summary_entropy(attn_BK, self._prompt_tokens_B)
        if step == 0:
            self._summary_first_B = summary_B
            self._summary_sum_B, self._attn_sum_BK = torch.zeros_like(summary_B), torch.zeros_like(attn_BK)
        if step >= self._from:
            self._summary_sum_B = self._summary_sum_B + summary_B
            self._attn_sum_BK = self._attn_sum_BK + attn_BK

    def result(self) -> dict[str, Tensor]:
        """Return the detector's columns: name -> values [B] or [B, n]."""
        import torch

        entropy_BT = torch.stack(self._entropy_steps, dim=1)
        last_B = entropy_BT[:, self._from :].mean(1)
        change_B = self._summary_sum_B / self._last - self._summary_first_B
        return {
            "entropy_trajectory": last_B + change_B.abs(),
            "entropy_trajectory_signed": last_B + change_B,
            "entropy_last": last_B,
            "summary_change": change_B,
            "entropy_steps": entropy_BT,
            "token_attention": self._attn_sum_BK / self._last,
        }

    @staticmethod
    def features(name: str, columns: Columns) -> npt.NDArray[np.float64]:
        """Return the features [N, F] of a score from columns averaged over seeds."""
        return columns[name][:, None]
