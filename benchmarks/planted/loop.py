"""Train any part of the planted model: seeded batches, cosine schedule, checkpoints and a line of progress."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch


def fit(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    loss: Callable[[int, torch.Generator], torch.Tensor],
    *,
    steps: int,
    rate: float,
    seed: int,
    checkpoint: Path,
    warmup: int = 100,
    weight_decay: float = 0.01,
    slow: Iterable[torch.nn.Parameter] = (),
) -> None:
    """Minimise a loss with AdamW, and resume from the checkpoint if there is one.

    Every random choice in step `i` comes from a generator seeded with (seed, i), so a resumed run is identical.

    Args:
        name: The name in the progress line.
        parameters: The weights to train.
        loss: Returns the loss of a step, given the step and its generator.
        steps: The number of steps.
        rate: The maximum learning rate.
        seed: The seed.
        checkpoint: The file of the training state, written every 500 steps.
        warmup: The number of steps over which the learning rate rises.
        weight_decay: The weight decay of AdamW.
        slow: Weights to train at a tenth of the rate.
    """
    groups = [{"params": list(parameters), "lr": rate}, {"params": list(slow), "lr": rate / 10}]
    weights = [weight for group in groups for weight in group["params"]]  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=weight_decay, foreach=True)

    def schedule(step: int) -> float:
        return min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        first = state["step"]
        with torch.no_grad():
            for weight, saved in zip(weights, state["weights"], strict=True):
                weight.copy_(saved)
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
    started, mean = time.time(), 0.0
    for step in range(first, steps):
        value = loss(step, torch.Generator().manual_seed(seed * 1_000_003 + step))
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        mean = value.item() if step == first else 0.98 * mean + 0.02 * value.item()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            pace = (time.time() - started) / (step + 1 - first)
            print(f"{name} {step + 1}/{steps} loss {mean:.4f} {pace:.3f} s/step", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            state = {
                "step": step + 1,
                "weights": [w.detach() for w in weights],
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
            }
            temporary = checkpoint.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(checkpoint)
