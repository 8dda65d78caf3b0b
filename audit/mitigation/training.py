"""Mitigate while training: give no weight to samples that look memorized (arXiv 2403.11052, section 5.2)."""

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

CONTROL_STRIDE = 3  # odd, so that in a grid of even width it meets every column
CONTROL_EVERY = 50  # steps; one extra forward every 50 steps costs less than one per cent
# Keeps the probe from running again when the backward pass recomputes compiled checkpoints.
LOOK_ONCE = "skip_fwd_side_effects_in_bwd_under_checkpoint"
FLUSH = 1000  # steps kept in memory before they are written
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
    """A forward in train mode: its attention, its timesteps, and the arguments it was called with."""

    attn_BLK: Tensor
    timestep_B: Tensor
    autocast: torch.dtype | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class TrainingGuard:
    """Silences samples of a training step whose attention is spread like that of memorized captions.

        guard = audit.TrainingGuard(unet, max_quantile=0.99)    # before torch.compile(unet) and DistributedDataParallel
        ...
        prediction = unet(noisy, timesteps, hidden).sample      # the forward that training runs anyway
        loss = (guard.weights(ids) * (prediction - target).square().mean((1, 2, 3))).mean()

    The guard averages a sample's attention over all cross-attention layers and compares its entropy with `max_entropy`
    (the paper's rule), or with the `max_quantile` of the last 2,000 samples of the same tenth of the timesteps. With
    `control_captions`, it uses our own rule, for models in which wide attention does not mean memorized
    (docs/evidence.md). Every 50 steps, control captions take the place of the captions in one extra forward, without
    gradient, on the same noisy latents. A sample is silenced if its attention profile is farther from theirs than
    `max_quantile` of them are.

    The log is written, and `seen` and `silenced` are updated, every 1,000 steps and by `close()`. Between those times
    nothing waits for the device, except what `control_captions` needs every 50 steps. Forwards in eval mode are
    ignored. The UNet may be compiled in place (`unet.compile()`) and adapters may be added, before or after. A forward
    raises AuditError if a cross-attention layer does not attend exactly once.

    Args:
        unet: The UNet that is trained.
        max_quantile: Quantile above which a sample is silenced, between 0 and 1.
        max_entropy: Entropy above which a sample is silenced, in nats. Give this or `max_quantile`.
        control_captions: Called with n, returns hidden states [n, K, D] of n control captions: captions that the
            model is not trained on, in the style of those it is trained on, drawn at random.
        warmup: Number of first samples of each tenth of the timesteps that are never silenced. Not used with
            `control_captions`.
        timesteps: Number of timesteps of the noise schedule.
        log: Folder for Parquet parts, one row per step: how many samples it saw and silenced, and the ids, timesteps
            and scores (entropies or distances) of the silenced ones.

    Raises:
        UsageError: The limits are invalid.
        AuditError: The model is not a UNet2DConditionModel.
    """

    def __init__(
        self,
        unet: nn.Module,
        max_quantile: float | None = None,
        max_entropy: float | None = None,
        control_captions: Callable[[int], Tensor] | None = None,
        warmup: int = 200,
        timesteps: int = 1000,
        log: str | Path | None = None,
    ) -> None:
        if (max_quantile is None) == (max_entropy is None):
            raise UsageError("the guard needs one limit", hint="Give max_quantile (0.99, say) or max_entropy (nats).")
        if max_quantile is not None and not 0 < max_quantile < 1:
            raise UsageError(f"max_quantile is {max_quantile}", hint="Give a number between 0 and 1.")
        if max_entropy is not None and control_captions is not None:
            raise UsageError(
                "max_entropy cannot be combined with control captions", hint="Give max_quantile (0.95, say)."
            )
        if not 1 <= warmup <= REMEMBERED:
            raise UsageError(f"warmup is {warmup}", hint=f"Give a number from 1 to {REMEMBERED}.")
        if not isinstance(unet, UNet2DConditionModel):
            what = f"the guard watches a UNet2DConditionModel, not {type(unet).__name__}"
            raise AuditError(what, hint="Create the guard before compiling or wrapping it.", kind="unsupported_model")
        self.seen = self.silenced = 0
        self._unet, self._control_captions = unet, control_captions
        self._rule: FixedEntropy | EntropyQuantile | ControlDistance
        if max_entropy is not None:
            self._rule = FixedEntropy(max_entropy)
        elif max_quantile is not None:
            self._rule = (
                EntropyQuantile(max_quantile, warmup) if control_captions is None else ControlDistance(max_quantile)
            )
        self._per_tenth = -(-timesteps // TENTHS)
        self._log = None if log is None else Path(log)
        self._pending: list[tuple[Tensor, Tensor, Tensor, list[str] | None]] = []
        self._steps = self._written = 0
        self._last: TrainingForward | None = None
        self._stride = 1 if control_captions is None else CONTROL_STRIDE
        self._probe: AttentionProbe | None = None  # of the forward in progress
        self._watching = ExitStack()
        watch_calls(unet, self)

    @torch.no_grad()
    def weights(self, ids: Sequence[str | int] | None = None) -> Tensor:
        """Return the weight of each sample of the latest forward, 0 or 1: [B], float32, on the forward's device.

        Args:
            ids: Names of the samples, for the log.

        Raises:
            UsageError: There was no forward in train mode since the last call, or the number of ids is wrong.
        """
        forward, self._last = self._last, None
        if forward is None:
            hint = "Run the UNet in train mode, then call weights() once. Create the guard before torch.compile."
            raise UsageError("there is no forward to return weights for", hint=hint)
        size = len(forward.attn_BLK)
        if ids is not None and len(ids) != size:
            raise UsageError(f"{len(ids)} ids for {size} samples", hint="Give one id per sample.")
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
        """Compute the attention of control captions on the same noisy latents and timesteps: [B, L, K]."""
        assert self._control_captions is not None
        hidden_BKD = self._control_captions(len(forward.attn_BLK))
        args, kwargs = list(forward.args), dict(forward.kwargs)
        if len(args) > 2:
            args[2] = hidden_BKD
        else:
            kwargs["encoder_hidden_states"] = hidden_BKD
        kind = forward.attn_BLK.device.type
        with torch.autocast(kind, forward.autocast, enabled=forward.autocast is not None):
            self._unet(*args, **kwargs)
        found, self._last = self._last, None
        assert found is not None  # set by the hook
        return found.attn_BLK

    def _flush(self) -> None:
        """Count the steps since the last flush, and write them if there is a log."""
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
        """Write the rest of the log and stop watching the UNet."""
        self._flush()
        unwatch_calls(self._unet, self)

    def before(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Start watching the UNet's current layers before a forward (called by `audit.attention.calls`).

        The layers are left alone between forwards, because gradient checkpointing runs them again during backward.

        Args:
            unet: The UNet that is called.
            args: Positional arguments of the call.
            kwargs: Keyword arguments of the call.

        Returns:
            The arguments, unchanged.
        """
        if unet.training:
            assert isinstance(unet, UNet2DConditionModel)
            self._probe = AttentionProbe(cross_attention_layers(unet), stride=self._stride)
            self._watching.enter_context(self._probe)
            if hasattr(torch._dynamo.config, LOOK_ONCE):
                self._watching.enter_context(torch._dynamo.config.patch({LOOK_ONCE: True}))
        return args, kwargs

    def result(self, _unet: nn.Module, output: Any) -> Any:
        """Leave the output of a forward unchanged (called by `audit.attention.calls`).

        Args:
            output: The output.
        """
        return output

    @torch.no_grad()
    def after(self, _unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], failed: bool) -> None:
        """Keep the attention of a forward of the UNet (called by `audit.attention.calls`).

        Args:
            args: Positional arguments of the forward.
            kwargs: Keyword arguments of the forward.
            failed: Whether the forward raised an exception.
        """
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
