"""Measure how much time half precision saves and how much accuracy it costs.

Speed: screen and generate with the full-size architecture of Stable Diffusion 1.5 and random weights in each dtype, as
ratios of paired runs. Accuracy: screen and generate with the bundled model, which really memorizes, in each dtype.

python -m benchmarks.dtypes [--device cuda] [--captions 64] [--no-speed]
"""

from __future__ import annotations

import time
from functools import partial
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer

import audit
from audit.images.decoding import decode
from audit.models.precision import name_of, use_exact_float32
from audit.statistics.detection_rates import tpr_at
from benchmarks.architectures import make
from benchmarks.paired import ratio
from pipelines.demo.demo import bundle

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PAIRS = 5
STEPS = 10
IMAGES = 16
screen = partial(audit.screen, detectors=("profile",))  # attention and responses of eight timesteps
SAME_PIXELS = 8  # levels of 255, root mean square


def main(
    device: str = "cpu",
    captions: Annotated[int, typer.Option(help="Captions per call at full size, and the batch size.")] = 64,
    speed: Annotated[bool, typer.Option(help="Measure the time at full size.")] = True,
) -> None:
    """Print the speed and the accuracy of each dtype."""
    torch.set_num_threads(1)
    use_exact_float32()
    if speed:
        measure_speed(device, captions)
    measure_accuracy(device)


def measure_speed(device: str, captions: int) -> None:
    """Print the time of each dtype relative to float32, the captions per second, and the peak memory."""
    texts = [f"a picture of the thing number {number}" for number in range(captions)]
    models = {dtype: make("sd15", device, dtype) for dtype in DTYPES}
    tasks = {
        "screen (profile)": lambda model: screen(model, texts, batch_size=captions),
        f"generate ({STEPS} steps)": lambda model: audit.generate(model, texts[:16], steps=STEPS, batch_size=16),
    }
    for title, task in tasks.items():
        rows = captions if title.startswith("screen") else 16
        for dtype in DTYPES:
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            task(models[dtype])
            seconds = _seconds(partial(task, models[dtype]), device)
            peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device == "cuda" else ""
            print(f"{title}, {name_of(dtype)}: {rows / seconds:.2f} captions/s{peak}", flush=True)
        for dtype in DTYPES[1:]:
            found = ratio(partial(task, models[torch.float32]), partial(task, models[dtype]), device, PAIRS)
            print(f"{title}, time of {name_of(dtype)} relative to float32: {found}", flush=True)


def measure_accuracy(device: str) -> None:
    """Print for each dtype how well the bundled model's memorized captions are detected, and what changes."""
    labels = pq.read_table(bundle() / "labels.parquet").to_pydict()
    pairs = list(zip(labels["caption"], labels["label"], strict=True))
    planted, unseen = ([text for text, label in pairs if label == wanted] for wanted in ("verbatim", "none"))
    controls = (bundle() / "calibration.txt").read_text(encoding="utf-8").splitlines()
    reference = audit.load_model(bundle() / "model")
    exact = screen(reference, planted)
    pictures = audit.generate(reference, planted[:IMAGES], steps=20, guidance_scale=4.0)["image"].to_pylist()
    for dtype in DTYPES:
        model = audit.load_model(bundle() / "model", device=device, dtype=dtype)
        calibration = audit.calibrate(screen(model, controls), "profile")
        found = screen(model, planted)
        positive, negative = (_scores(calibration.score(table)) for table in (found, screen(model, unseen)))
        print(f"{name_of(dtype)} on {device}, compared with float32 on the CPU:")
        print(f"  profile: TPR {tpr_at(0.01, positive, negative):.3f} at 1 % FPR ({len(positive)}, {len(negative)})")
        for column in ("noise_response", "layer_bos", "layer_entropy"):
            print(f"  {column}: {_difference(found, exact, column)}")
        alone = screen(model, planted, batch_size=1)
        print(f"  noise_response, batch 1 compared with {len(planted)}: {_difference(alone, found, 'noise_response')}")
        made = audit.generate(model, planted[:IMAGES], steps=20, guidance_scale=4.0)["image"].to_pylist()
        rms = np.array([_rms(one, other) for one, other in zip(made, pictures, strict=True)])
        print(
            f"  images: median RMS {np.median(rms):.2f} of 255, {(rms > SAME_PIXELS).sum()} of {len(rms)} beyond "
            f"{SAME_PIXELS}",
            flush=True,
        )


def _scores(table: pa.Table) -> Any:
    return table["score"].to_numpy()


def _difference(one: pa.Table, other: pa.Table, column: str) -> str:
    a, b = (np.array(table[column].to_pylist(), dtype=float) for table in (one, other))
    return f"median difference {np.median(np.abs(a - b)):.2e}, largest {np.abs(a - b).max():.2e}"


def _rms(one: bytes, other: bytes) -> float:
    a, b = (np.asarray(decode(image), dtype=float) for image in (one, other))
    return float(np.sqrt(((a - b) ** 2).mean()))


def _seconds(run: Any, device: str) -> float:
    _synchronize(device)
    began = time.perf_counter()
    run()
    _synchronize(device)
    return time.perf_counter() - began


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    typer.run(main)
