"""Mitigation while training (arXiv 2403.11052, section 5.2): samples that look memorized get no weight in the loss."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from audit.attention import AttentionProbe, cross_attention_layers
from audit.entropy import entropy
from audit.errors import AuditError, UsageError

# Shapes: B samples of a step, L layers, K text positions, T tenths of the timesteps, W remembered entropies.

TENTHS = 10  # entropy depends on t: each tenth of the timesteps has a quantile of its own
REMEMBERED = 2000  # entropies that a running quantile is taken over
FLUSH = 1000  # steps that are kept in memory before they are written
LOG = pa.schema(
    {
        "step": pa.int64(),
        "seen": pa.int32(),
        "silenced": pa.int32(),
        "ids": pa.list_(pa.string()),
        "timesteps": pa.list_(pa.int32()),
        "entropies": pa.list_(pa.float64()),
    }
)


class TrainingGuard:
    """Silences the samples of a training step whose attention is spread as that of memorized captions is.

        guard = audit.TrainingGuard(unet, max_quantile=0.99)    # before torch.compile and DistributedDataParallel
        ...
        prediction = unet(noisy, timesteps, hidden).sample      # the forward that training runs anyway
        loss = (guard.weights(ids) * (prediction - target).square().mean((1, 2, 3))).mean()

    The entropy of the attention averaged over all cross-attention layers is held, sample by sample, against
    `max_entropy` (nats; the paper's rule) or against the `max_quantile` of the last 2,000 samples of the same tenth
    of the timesteps. In the first `warmup` samples of a tenth nothing is silenced by a quantile.

    log: a folder for Parquet parts, one row a step: how many samples it saw and silenced, and of the silenced ones
    the ids, timesteps and entropies. It is written, and `seen` and `silenced` are counted up, every 1,000 steps and
    by `close()`: until then nothing waits for the device. Forwards in eval mode are not looked at.
    Raises UsageError for bad limits, AuditError for a model that is no UNet2DConditionModel.
    """

    def __init__(
        self,
        unet: nn.Module,
        max_quantile: float | None = None,
        max_entropy: float | None = None,
        warmup: int = 200,
        timesteps: int = 1000,
        log: str | Path | None = None,
    ) -> None:
        if (max_quantile is None) == (max_entropy is None):
            raise UsageError("the guard needs one limit", do="Give max_quantile (0.99, say) or max_entropy (nats).")
        if max_quantile is not None and not 0 < max_quantile < 1:
            raise UsageError(f"max_quantile is {max_quantile}", do="Give a number between 0 and 1.")
        if not 1 <= warmup <= REMEMBERED:
            raise UsageError(f"warmup is {warmup}", do=f"Give a number from 1 to {REMEMBERED}.")
        if not isinstance(unet, UNet2DConditionModel):
            what = f"the guard watches a UNet2DConditionModel, not {type(unet).__name__}"
            raise AuditError(what, do="Make it before the UNet is compiled or wrapped.", kind="unsupported_model")
        self.seen = self.silenced = 0
        self._max_quantile, self._max_entropy, self._warmup = max_quantile, max_entropy, warmup
        self._per_tenth = -(-timesteps // TENTHS)
        self._log = None if log is None else Path(log)
        self._pending: list[tuple[Tensor, Tensor, Tensor, list[str] | None]] = []
        self._written = 0
        self._entropies_TW = torch.full((TENTHS, REMEMBERED), torch.nan)
        self._counts_T = torch.zeros(TENTHS, dtype=torch.long)
        self._last: tuple[Tensor, Tensor] | None = None  # entropy and timestep of the samples of the last forward
        self._probe = AttentionProbe(cross_attention_layers(unet))
        self._probe.active = False
        self._probe.__enter__()
        self._handles = [
            unet.register_forward_pre_hook(self._before),
            unet.register_forward_hook(self._after, with_kwargs=True),
        ]

    @torch.no_grad()
    def weights(self, ids: Sequence[str | int] | None = None) -> Tensor:
        """The weight of each sample of the forward just run, 0 or 1: [B], float32, on its device.

        ids: names of the samples for the log. Raises UsageError without a forward in train mode since the last call.
        """
        if self._last is None:
            raise UsageError("no forward to weigh", do="Run the UNet in train mode, then ask for the weights, once.")
        (entropy_B, timestep_B), self._last = self._last, None
        if ids is not None and len(ids) != len(entropy_B):
            raise UsageError(f"{len(ids)} ids for {len(entropy_B)} samples", do="Give one id a sample.")
        limit_B = self._limits(entropy_B, timestep_B)
        loud_B = entropy_B > limit_B
        names = None if ids is None else [str(name) for name in ids]
        self._pending.append((loud_B, timestep_B, entropy_B, names))
        if len(self._pending) >= FLUSH:
            self._flush()
        return (~loud_B).float()

    def _flush(self) -> None:
        """Count the steps since the last flush, and write them where there is a log."""
        rows = []
        for step, (loud_B, timestep_B, entropy_B, names) in enumerate(self._pending, self._written):
            where = loud_B.nonzero().flatten().tolist()
            self.seen += len(loud_B)
            self.silenced += len(where)
            rows.append(
                {
                    "step": step,
                    "seen": len(loud_B),
                    "silenced": len(where),
                    "ids": None if names is None else [names[i] for i in where],
                    "timesteps": timestep_B[where].tolist(),
                    "entropies": entropy_B[where].tolist(),
                }
            )
        if self._log is not None and rows:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            self._log.mkdir(parents=True, exist_ok=True)
            part = self._log / f"{rank:03d}-{self._written:010d}.parquet"
            temporary = part.with_suffix(".tmp")
            pq.write_table(pa.Table.from_pylist(rows, LOG), temporary, compression="zstd")
            os.replace(temporary, part)
        self._written += len(rows)
        self._pending.clear()

    def close(self) -> None:
        """Write what is left of the log and let go of the UNet."""
        self._flush()
        self._probe.__exit__()
        for handle in self._handles:
            handle.remove()

    def _before(self, unet: nn.Module, _inputs: Any) -> None:
        # Gradient checkpointing runs layers again during backward, when nobody must look.
        self._probe.active = unet.training

    @torch.no_grad()
    def _after(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        self._probe.active = False
        if not unet.training:
            return
        attn_BLK = self._probe.take()
        timestep = kwargs["timestep"] if len(args) < 2 else args[1]
        timestep_B = torch.as_tensor(timestep, device=attn_BLK.device).flatten().expand(len(attn_BLK))
        self._last = entropy(attn_BLK.mean(1)), timestep_B.long()

    def _limits(self, entropy_B: Tensor, timestep_B: Tensor) -> Tensor:
        """The limit of each sample, from the samples before this step, which are remembered next: [B]. No host sync."""
        if self._max_entropy is not None:
            return torch.full_like(entropy_B, self._max_entropy)
        assert self._max_quantile is not None
        device = entropy_B.device
        self._entropies_TW, self._counts_T = self._entropies_TW.to(device), self._counts_T.to(device)
        tenth_B = (timestep_B // self._per_tenth).clamp(0, TENTHS - 1)
        limit_T = self._entropies_TW.nanquantile(self._max_quantile, dim=1)
        limit_T = torch.where(self._counts_T < self._warmup, torch.inf, limit_T)
        one_hot_BT = nn.functional.one_hot(tenth_B, TENTHS)
        place_B = (one_hot_BT.cumsum(0) * one_hot_BT).sum(1) - 1 + self._counts_T[tenth_B]
        self._entropies_TW[tenth_B, place_B % REMEMBERED] = entropy_B.to(self._entropies_TW.dtype)
        self._counts_T += one_hot_BT.sum(0)
        return limit_T.to(entropy_B.dtype)[tenth_B]
