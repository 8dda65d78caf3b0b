"""Compare the response of the caption inside the UNet with that of its output: an early one would cost less.

Shapes: B rows, N captions, P parts of the UNet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

import audit
from audit.calibration.distance import robust_scale
from audit.models.noise import initial_latents
from audit.statistics.detection_rates import auroc, tpr_at
from benchmarks.planted.bench.labels import Labels

Floats = npt.NDArray[np.float64]
TIMESTEPS = (741, 501)
SHARES = (0.05, 0.1, 0.2)  # of the captions never trained on, that reach the second stage
FPR = 0.01
WHOLE = "output, t = 501"  # `caption_response`
FLOOR = 1e-6  # relative to the value without a caption, below which a response is rounding


def parts(unet: Any) -> dict[str, nn.Module]:
    """Return the parts of a UNet after which a forward could end, by name, in order of execution."""
    found = {
        f"down_blocks.{i}.attentions.{j}": transformer
        for i, block in enumerate(unet.down_blocks)
        for j, transformer in enumerate(getattr(block, "attentions", ()))
    }
    found["mid_block"] = unet.mid_block
    return found | {f"up_blocks.{i}": block for i, block in enumerate(unet.up_blocks)} | {"output": unet}


@torch.inference_mode()
def measure(model: audit.Model, captions: Sequence[str], seed: int, batch: int) -> pa.Table:
    """Measure `log ||h(c) - h(∅)||` after each part of the UNet, on the initial noise.

    Args:
        model: The model.
        captions: The captions.
        seed: Seed of the initial noise.
        batch: Captions per forward.

    Returns:
        A column for each part and timestep. Those that begin with "inner" are of forwards whose first down block is
        that of the empty prompt, which costs nothing per caption.
    """
    noise_1CHW = initial_latents([seed], model.latent_shape, model.device)
    empty = model.encode([""])
    columns: dict[str, list[Tensor]] = {}
    unet = model.pipeline().unet
    for timestep in TIMESTEPS:
        for prefix, block in (("", None), ("inner ", unet.down_blocks[0])):
            with recorded(parts(unet)) as seen, repeated(block) as repeat:
                model.predict(noise_1CHW, timestep, empty)
                without = dict(seen)
                repeat()
                for start in range(0, len(captions), batch):
                    conditioning = model.encode(captions[start : start + batch])
                    model.predict(noise_1CHW.expand(len(conditioning), -1, -1, -1), timestep, conditioning)
                    for name, value in seen.items():
                        columns.setdefault(f"{prefix}{name}, t = {timestep}", []).append(log_norm(value, without[name]))
    return pa.table({"caption": list(captions)} | {name: torch.cat(part).numpy() for name, part in columns.items()})


def log_norm(value: Tensor, without: Tensor) -> Tensor:
    """Return the logarithm of the norm of each row's difference to the value without a caption: [B]."""
    norm_B = (value - without).double().flatten(1).norm(dim=1)
    return norm_B.clamp_min(FLOOR * float(without.double().norm())).log()


@contextmanager
def recorded(modules: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that has the latest output of each module, by name."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def repeated(block: nn.Module | None) -> Iterator[Callable[[], None]]:
    """Yield a function, after whose call a down block returns its latest output for each row of a batch."""
    latest: list[Any] = []
    repeating: list[bool] = []

    def hook(module: nn.Module, inputs: Any, output: tuple[Tensor, tuple[Tensor, ...]]) -> Any:
        if not repeating:
            latest[:] = [output]
            return output
        (hidden, skips), rows = latest[0], len(output[0])
        return hidden.expand(rows, -1, -1, -1), tuple(skip.expand(rows, -1, -1, -1) for skip in skips)

    handle = None if block is None else block.register_forward_hook(hook)
    try:
        yield lambda: repeating.append(True)
    finally:
        if handle is not None:
            handle.remove()


def compare(table: pa.Table, labels: Labels) -> list[dict[str, Any]]:
    """Return what each part finds, alone and as the first stage before `caption_response`.

    Args:
        table: What `measure` returned.
        labels: The labels of the model.

    Returns:
        For each column, the AUROC, the TPR at 1 % FPR, and `kept`: of the captions that reproduce and that the whole
        forward finds at 1 % FPR, the shares that are above all but 5, 10 and 20 % of the captions never trained on.
    """
    names = table["caption"].to_pylist()
    control_N = np.array([labels.kind[name] == "control" for name in names])
    positive_N, negative_N = (np.isin(names, group) for group in (labels.positives(), labels.negatives("never")))

    def scores(column: str) -> Floats:
        values_N1 = table[column].to_numpy()[:, None]
        median_1, inverse_1 = robust_scale(values_N1[control_N])
        return np.asarray(((values_N1 - median_1) * inverse_1)[:, 0])

    whole_N = scores(WHOLE)
    found_N = positive_N & (whole_N > np.quantile(whole_N[negative_N], 1 - FPR))
    result = []
    for column in table.column_names[1:]:
        score_N = scores(column)
        limits = [np.quantile(score_N[negative_N], 1 - share) for share in SHARES]
        result.append(
            {"part": column}
            | {"auroc": auroc(score_N[positive_N], score_N[negative_N])}
            | {"tpr_at_1_percent": tpr_at(FPR, score_N[positive_N], score_N[negative_N])}
            | {"kept": [float((score_N[found_N] > limit).mean()) for limit in limits]}
        )
    return result
