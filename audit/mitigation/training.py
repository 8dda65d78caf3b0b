"""Mitigation while training (arXiv 2403.11052, section 5.2): samples that look memorized get no weight in the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from audit.attention.calls import unwatch_calls, watch_calls
from audit.attention.probe import AttentionProbe, cross_attention_layers
from audit.errors import AuditError, UsageError
from audit.mitigation.guard_rules import REMEMBERED, TENTHS, ControlDistance, EntropyQuantile, FixedEntropy
from audit.record.filesystem import writing

# Shapes: B samples of a step, L layers, K text positions, D text width.

CONTROL_STRIDE = 3  # odd: in a grid of even width it meets every column
CONTROL_EVERY = 50  # steps: one more forward in so many costs less than one per cent
# In compiled checkpoints, the probe is not to look again when backward recomputes them.
LOOK_ONCE = "skip_fwd_side_effects_in_bwd_under_checkpoint"
FLUSH = 1000  # steps that are kept in memory before they are written
LOG = pa.schema(
    {
        "step": pa.int64(),
        "seen": pa.int32(),
        "silenced": pa.int32(),
        "ids": pa.list_(pa.string()),
        "timesteps": pa.list_(pa.int32()),
        "scores": pa.list_(pa.float64()),
    }
)


@dataclass(frozen=True)
class TrainingForward:
    """A forward in train mode: what it attended to, at which timesteps, and how it was called."""

    attn_BLK: Tensor
    timestep_B: Tensor
    autocast: torch.dtype | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class TrainingGuard:
    """Silences the samples of a training step whose attention is spread as that of memorized captions is.

        guard = audit.TrainingGuard(unet, max_quantile=0.99)    # before torch.compile(unet) and DistributedDataParallel
        ...
        prediction = unet(noisy, timesteps, hidden).sample      # the forward that training runs anyway
        loss = (guard.weights(ids) * (prediction - target).square().mean((1, 2, 3))).mean()

    Of a sample's attention, the entropy averaged over all cross-attention layers is held against `max_entropy` (nats;
    the paper's rule), or against the `max_quantile` of the last 2,000 samples of the same tenth of the timesteps (in
    the first `warmup` samples of a tenth nothing is silenced).

    null: ours, where wide attention does not mean memorized (docs/evidence.md). Called with n, it gives the hidden
    states [n, K, D] of n captions that are not trained on, in the style of those that are, drawn at random. Every 50
    steps they take the place of the captions in one more forward, without gradient, on the same noisy latents; a
    sample is silenced whose attention profile lies farther from theirs than `max_quantile` of them do.

    log: a folder for Parquet parts, one row a step: how many samples it saw and silenced, and of the silenced ones
    the ids, timesteps and scores (entropies or distances). It is written, and `seen` and `silenced` are counted up,
    every 1,000 steps and by `close()`: until then nothing waits for the device, but what `null` needs every 50 steps.
    Forwards in eval mode are not looked at. The UNet may be compiled in place (`unet.compile()`), and adapters added,
    before or after. A forward raises AuditError if a cross-attention layer does not attend exactly once.
    Raises UsageError for bad limits, AuditError for a model that is no UNet2DConditionModel.
    """

    def __init__(
        self,
        unet: nn.Module,
        max_quantile: float | None = None,
        max_entropy: float | None = None,
        null: Callable[[int], Tensor] | None = None,
        warmup: int = 200,
        timesteps: int = 1000,
        log: str | Path | None = None,
    ) -> None:
        if (max_quantile is None) == (max_entropy is None):
            raise UsageError("the guard needs one limit", hint="Give max_quantile (0.99, say) or max_entropy (nats).")
        if max_quantile is not None and not 0 < max_quantile < 1:
            raise UsageError(f"max_quantile is {max_quantile}", hint="Give a number between 0 and 1.")
        if max_entropy is not None and null is not None:
            raise UsageError("max_entropy does not go with control captions", hint="Give max_quantile (0.95, say).")
        if not 1 <= warmup <= REMEMBERED:
            raise UsageError(f"warmup is {warmup}", hint=f"Give a number from 1 to {REMEMBERED}.")
        if not isinstance(unet, UNet2DConditionModel):
            what = f"the guard watches a UNet2DConditionModel, not {type(unet).__name__}"
            raise AuditError(what, hint="Make it before the UNet is compiled or wrapped.", kind="unsupported_model")
        self.seen = self.silenced = 0
        self._unet, self._null = unet, null
        self._rule: FixedEntropy | EntropyQuantile | ControlDistance
        if max_entropy is not None:
            self._rule = FixedEntropy(max_entropy)
        elif max_quantile is not None:
            self._rule = EntropyQuantile(max_quantile, warmup) if null is None else ControlDistance(max_quantile)
        self._per_tenth = -(-timesteps // TENTHS)
        self._log = None if log is None else Path(log)
        self._pending: list[tuple[Tensor, Tensor, Tensor, list[str] | None]] = []
        self._steps = self._written = 0
        self._last: TrainingForward | None = None
        self._stride = 1 if null is None else CONTROL_STRIDE
        self._probe: AttentionProbe | None = None  # of the forward that is running
        self._watching = ExitStack()
        watch_calls(unet, self)

    @torch.no_grad()
    def weights(self, ids: Sequence[str | int] | None = None) -> Tensor:
        """The weight of each sample of the forward just run, 0 or 1: [B], float32, on its device.

        ids: names of the samples for the log. Raises UsageError without a forward in train mode since the last call.
        """
        forward, self._last = self._last, None
        if forward is None:
            hint = "Run the UNet in train mode, then ask for the weights, once. Make the guard before torch.compile."
            raise UsageError("no forward to weigh", hint=hint)
        size = len(forward.attn_BLK)
        if ids is not None and len(ids) != size:
            raise UsageError(f"{len(ids)} ids for {size} samples", hint="Give one id a sample.")
        if self._steps % CONTROL_EVERY == 0 and isinstance(self._rule, ControlDistance):
            self._rule.learn(self._control_attention(forward), self._tenth(forward))
        self._steps += 1
        score_B, limit_B = self._rule(forward.attn_BLK, self._tenth(forward))
        loud_B = score_B > limit_B
        names = None if ids is None else [str(name) for name in ids]
        self._pending.append((loud_B, forward.timestep_B, score_B, names))
        if len(self._pending) >= FLUSH:
            self._flush()
        return (~loud_B).float()

    def _tenth(self, forward: TrainingForward) -> Tensor:
        return (forward.timestep_B // self._per_tenth).clamp(0, TENTHS - 1)

    def _control_attention(self, forward: TrainingForward) -> Tensor:
        """What control captions attend to on the same noisy latents and timesteps: [B, L, K]."""
        assert self._null is not None
        hidden_BKD = self._null(len(forward.attn_BLK))
        args, kwargs = list(forward.args), dict(forward.kwargs)
        if len(args) > 2:
            args[2] = hidden_BKD
        else:
            kwargs["encoder_hidden_states"] = hidden_BKD
        kind = forward.attn_BLK.device.type
        with torch.autocast(kind, forward.autocast, enabled=forward.autocast is not None):
            self._unet(*args, **kwargs)
        found, self._last = self._last, None
        assert found is not None  # of the hook
        return found.attn_BLK

    def _flush(self) -> None:
        """Count the steps since the last flush, and write them where there is a log."""
        rows = []
        for step, (loud_B, timestep_B, score_B, names) in enumerate(self._pending, self._written):
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
                    "scores": score_B[where].tolist(),
                }
            )
        if self._log is not None and rows:
            rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
            part = self._log.absolute() / f"{rank:03d}-{self._written:010d}.parquet"
            with writing(pafs.LocalFileSystem(), str(part)) as sink:
                pq.write_table(pa.Table.from_pylist(rows, LOG), sink, compression="zstd")
        self._written += len(rows)
        self._pending.clear()

    def close(self) -> None:
        """Write what is left of the log and let go of the UNet."""
        self._flush()
        unwatch_calls(self._unet, self)

    def before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Called before each forward of the UNet (`audit.attention.calls`): watch its layers as they are now.

        Layers are left alone between forwards: gradient checkpointing runs them again during backward.
        """
        if unet.training:
            assert isinstance(unet, UNet2DConditionModel)
            self._probe = AttentionProbe(cross_attention_layers(unet), stride=self._stride)
            self._watching.enter_context(self._probe)
            if hasattr(torch._dynamo.config, LOOK_ONCE):
                self._watching.enter_context(torch._dynamo.config.patch({LOOK_ONCE: True}))
        return args, kwargs

    @torch.no_grad()
    def after(self, _unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], failed: bool) -> None:
        """Called after each forward of the UNet (`audit.attention.calls`): keep what it attended to."""
        probe, self._probe = self._probe, None
        if probe is None:
            return
        self._watching.close()
        if failed:
            return
        attn_BLK = probe.take()
        timestep = kwargs["timestep"] if len(args) < 2 else args[1]
        timestep_B = torch.as_tensor(timestep, device=attn_BLK.device).flatten().expand(len(attn_BLK))
        kind = attn_BLK.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self._last = TrainingForward(attn_BLK, timestep_B.long(), autocast, args, kwargs)
