"""Show where attention separates captions from control captions, by layer and timestep."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import torch
from sklearn.metrics import roc_auc_score

from audit.detectors.entropy import entropy
from audit.detectors.noise_profile import POSITIONS
from audit.errors import UsageError
from audit.models.model import Model
from audit.scoring.batching import Rows
from audit.scoring.progress import Progress
from audit.scoring.screening import Forward, run_forward
from audit.scoring.supported import check_attention

# Shapes: N captions, L layers, K text positions, T timesteps.

LAYERS = pa.schema(
    [
        ("timestep", pa.int64()),
        ("layer", pa.int64()),
        ("feature", pa.string()),  # entropy | bos
        ("control_median", pa.float64()),
        ("median", pa.float64()),
        ("auroc", pa.float64()),  # above 0.5 if the captions have larger values than the control captions
    ]
)


@torch.inference_mode()
def layers(
    model: Model,
    captions: Sequence[str],
    control_captions: Sequence[str],
    seed: int = 0,
    batch_size: int | None = None,
    progress: Progress | None = None,
) -> pa.Table:
    """Rank captions against control captions by the entropy and BOS attention of each layer, on the initial noise.

    The table shows in which layers a model's memory becomes visible. Do not pick a detector by it: the best layer is
    only known in hindsight.

    Args:
        model: The model to run.
        captions: Captions to rank, such as confirmed ones.
        control_captions: Captions to rank them against.
        seed: Seed of the initial noise.
        batch_size: Rows per forward; by default as many as fit in memory.
        progress: Called after each batch.

    Returns:
        One row per timestep (those of the noise profile), layer and feature, as in LAYERS.

    Raises:
        UsageError: There are no captions or no control captions.
        AuditError: The model does not show its attention.
    """
    if not captions or not control_captions:
        raise UsageError("there is nothing to compare", hint="Give captions and control captions.")
    check_attention(model, "a ranking of layers")
    total = len(captions) + len(control_captions)

    def told(done: int) -> None:
        if progress is not None:
            progress("look at layers", "captions", done, total)

    own = _seen(model, captions, seed, batch_size, told)
    control = _seen(model, control_captions, seed, batch_size, lambda done: told(len(captions) + done))
    timesteps = model.screen_schedule().timesteps
    truth = np.repeat([1, 0], [len(captions), len(control_captions)])
    rows = []
    for at, position in enumerate(POSITIONS):
        for layer in range(len(model.layers)):
            for feature, name in enumerate(("entropy", "bos")):
                own_N, control_N = own[at, :, layer, feature], control[at, :, layer, feature]
                auroc = float(roc_auc_score(truth, np.concatenate([own_N, control_N])))
                medians = float(np.median(control_N)), float(np.median(own_N))
                rows.append((round(timesteps[position]), layer, name, *medians, auroc))
    return pa.Table.from_pylist([dict(zip(LAYERS.names, row, strict=True)) for row in rows], schema=LAYERS)


def _seen(
    model: Model, captions: Sequence[str], seed: int, batch_size: int | None, done: Callable[[int], None]
) -> np.ndarray:
    """Measure the entropy and BOS attention of each caption, per timestep and layer: [T, N, L, 2]."""
    schedule = model.screen_schedule()
    rows = Rows(model, captions, [seed], batch_size)

    def see(at: slice) -> np.ndarray:
        batch = rows.batch(at)
        noise_BCHW = rows.noise_SCHW[batch.seed_B]
        seen = []
        for position in POSITIONS:
            forward = Forward(position, schedule.timesteps[position], len(model.layers), full=False)
            input_BCHW = schedule.noisy(noise_BCHW, position)
            _, attn_BLK = run_forward(model, forward, input_BCHW, batch.conditioning, 1)
            assert attn_BLK is not None
            seen.append(torch.stack([entropy(attn_BLK), attn_BLK[..., 0].double()], dim=-1))
        return torch.stack(seen).cpu().numpy()

    return np.concatenate(rows.each("layers", see, done), axis=1)
