"""Measure what a screen costs, relative to plain diffusers and to the code released with the paper.

One program for CPU and GPU. It needs what `audit` needs, and no network: models at full size have random weights. All
tasks are measured in turn, in CPU time on the CPU and in wall time on a GPU, and compared within rounds.

python -m benchmarks.speed [--arch sd15] [--device cuda --dtype bfloat16] [--batch 64] [--steps 50] [--rounds 5]
python -m benchmarks.speed --arch sd15 --count      counts FLOPs alone, in seconds
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import audit
from audit.attention.probe import AttentionProbe, LayersSeen
from audit.costs.flops import count, generation_cost, screen_cost
from audit.defaults import DEFAULT_DETECTOR
from audit.detectors import COMBINED, SCREEN
from audit.images.png import png
from audit.models.compilation import compile_blocks
from audit.models.noise import initial_latents
from audit.models.precision import use_exact_float32
from audit.models.sd import StableDiffusion
from audit.scoring.generation import decode
from benchmarks import released
from benchmarks.architectures import NAMES, make, outline
from benchmarks.paired import rounds

RESULTS = Path(__file__).parent / "results" / "speed"
CAPTION = "a tidy flat picture of a headphone on a white background, number"
HALVED = {DEFAULT_DETECTOR, "entropy_single_step", "noise_magnitude"}  # with all, a quarter, and one forward
HALF = " at half the side"
RELEASED, PLAIN = "released code", "plain diffusers"
PAPER_STEPS = 50


@dataclass(frozen=True)
class Task:
    """Something to measure.

    Attributes:
        captions: Captions (images, rows) that one run handles.
        run: Does it.
        flops: Counted FLOPs per caption.
        scale: What the time per caption is multiplied with, if it ran fewer steps than `PAPER_STEPS`.
    """

    captions: int
    run: Callable[[], Any]
    flops: float
    scale: float = 1.0


def screens(model: audit.Model, shape: audit.Model, batch: int, captions: int, names: Sequence[str]) -> dict[str, Task]:
    """Return the screens by each detector, some of them also at half the resolution.

    Args:
        model: The model to run.
        shape: The same model without weights.
        batch: Captions per forward.
        captions: Captions per call. They share the forwards without a caption.
        names: The detectors, beside the default.
    """
    height, width = model.resolution
    half = (height // 2, width // 2)
    tasks: dict[str, Task] = {}
    for name in dict.fromkeys((DEFAULT_DETECTOR, *names)):
        for resolution in (None, half) if name in HALVED else (None,):
            cost = screen_cost(shape.at_resolution(resolution), (name,))
            tasks[f"screen, {name}{HALF if resolution else ''}"] = Task(
                captions,
                partial(
                    audit.screen, model, _captions(captions), (0,), (name,), batch_size=batch, resolution=resolution
                ),
                cost.text
                + cost.row
                + cost.shared / batch
                + (cost.unconditional and cost.text + cost.unconditional) / captions,
            )
    return tasks


def generations(model: audit.Model, shape: audit.Model, batch: int, steps: int) -> dict[str, Task]:
    """Return the generations: the released code, plain diffusers, and `audit.generate` with and without detectors."""
    cost = generation_cost(shape, 7.5)
    flops, scale, pipeline = cost.text + cost.of(PAPER_STEPS), PAPER_STEPS / steps, model.pipeline()

    def plain(captions: int) -> None:
        noise_BCHW = initial_latents(range(captions), model.latent_shape, model.device).to(model.dtype)
        pipeline(_captions(captions), num_inference_steps=steps, latents=noise_BCHW)

    def ours(*detectors: str) -> None:
        audit.generate(model, _captions(batch), steps=steps, detectors=detectors, batch_size=batch)

    assert isinstance(model, StableDiffusion)
    return {
        RELEASED: Task(1, partial(released.score, model, CAPTION, steps=steps), flops, scale),
        f"{PLAIN}, batch 1": Task(1, partial(plain, 1), flops, scale),
        f"{PLAIN}, batch {batch}": Task(batch, partial(plain, batch), flops, scale),
        f"generate, batch {batch}": Task(batch, ours, flops, scale),
        f"generate with entropy_trajectory, batch {batch}": Task(
            batch, partial(ours, "entropy_trajectory"), flops, scale
        ),
    }


def parts(model: audit.Model, shape: audit.Model, batch: int) -> dict[str, Task]:
    """Return the parts that screens and generations consist of, each on a batch of rows."""
    encoded, empty = model.encode(_captions(batch)), shape.encode([""])
    noise_BCHW = initial_latents(range(batch), model.latent_shape, model.device)
    pixels = np.random.default_rng(0).integers(0, 256, (*model.resolution, 3), dtype=np.uint8)

    @torch.inference_mode()
    def forward(of: audit.Model, rows: int, layers: int | None = None) -> None:
        if of.device.type == "meta":
            noise, conditioning = torch.empty(1, *noise_BCHW.shape[1:], device="meta"), empty
        else:
            noise, conditioning = noise_BCHW[:rows], encoded[slice(rows)]
        if layers is None:
            of.predict(noise, 501, conditioning)
            return
        with AttentionProbe(of.layers[:layers], stop=layers < len(of.layers)):
            try:
                of.predict(noise, 501, conditioning)
            except LayersSeen:
                return

    @torch.inference_mode()
    def decoded(of: audit.Model, latents: torch.Tensor) -> None:
        decode(of, latents)

    everything = len(model.layers)
    tasks = {
        "text encoder": Task(batch, partial(model.encode, _captions(batch)), count(lambda: shape.encode([""]))),
        "UNet": Task(batch, partial(forward, model, batch), count(lambda: forward(shape, 1))),
    }
    for name, layers in (
        ("UNet, all attention recorded", everything),
        ("UNet to the 4th cross-attention", 4),
        ("UNet to the 1st cross-attention", 1),
    ):
        tasks[name] = Task(batch, partial(forward, model, batch, layers), count(partial(forward, shape, 1, layers)))
    tasks["UNet, batch 1"] = Task(1, partial(forward, model, 1), tasks["UNet"].flops)
    image = torch.empty(1, *shape.latent_shape, device="meta")
    tasks["decoder"] = Task(1, partial(decoded, model, noise_BCHW[:1]), count(lambda: decoded(shape, image)))
    tasks["PNG"] = Task(1, partial(png, pixels), 0)
    return tasks


def matmul_peak(device: str, dtype: torch.dtype, side: int) -> float:
    """Measure the FLOP/s of a square matrix product, the best of ten."""
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = rounds({"product": lambda: one @ other}, device, 10, clock_of(device))["product"]
    return 2 * side**3 / min(seconds)


def clock_of(device: str) -> Callable[[], float]:
    """Return the clock: CPU time on the CPU, because others may use it too; wall time on a GPU."""
    return time.process_time if device == "cpu" else time.perf_counter


def measure(tasks: Mapping[str, Task], device: str, number: int) -> dict[str, dict[str, Any]]:
    """Measure tasks in turn: seconds per caption of each round, captions per run and TFLOP per caption, by name."""
    seconds = rounds({name: task.run for name, task in tasks.items()}, device, number, clock_of(device))
    return {
        name: {
            "seconds": [task.scale * each / task.captions for each in seconds[name]],
            "captions": task.captions,
            "tflop": task.flops / 1e12,
            "scaled": task.scale != 1,
        }
        for name, task in tasks.items()
    }


def machine(device: str) -> dict[str, Any]:
    """Describe what the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "name": torch.cuda.get_device_name() if device == "cuda" else cpu,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "clock": "CPU time" if device == "cpu" else "wall time",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write a JSON file and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", choices=NAMES, default="tiny-sd1")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--batch", type=int, default=16, help="captions per forward")
    parser.add_argument("--captions", type=int, help="captions per screen; by default one batch")
    parser.add_argument("--compile", action="store_true", help="compile blocks of the denoiser")
    parser.add_argument("--images", type=int, default=8, help="images per batch")
    parser.add_argument("--steps", type=int, default=PAPER_STEPS, help="with fewer, times are scaled to 50 steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peak", type=int, default=1024, help="side of the matrices whose product gives the peak")
    parser.add_argument("--detectors", nargs="*", default=[*COMBINED, *SCREEN], help="beside the default screen")
    parser.add_argument("--count", action="store_true", help="count FLOPs, and run nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    use_exact_float32()
    dtype = getattr(torch, chosen.dtype)
    shape = outline(chosen.arch)
    model = shape if chosen.count else make(chosen.arch, chosen.device, dtype)
    if chosen.compile:
        compile_blocks(getattr(model, model.DENOISER))
    tasks = generations(model, shape, chosen.images, chosen.steps)
    tasks |= screens(model, shape, chosen.batch, chosen.captions or chosen.batch, chosen.detectors)
    if chosen.count:
        counted = {name: task.flops / 1e12 for name, task in (tasks | parts(model, shape, chosen.batch)).items()}
        _write(chosen.out / "counted" / f"{chosen.arch}.json", {"arch": chosen.arch, "tflop": counted})
        return
    found = {
        **{name: getattr(chosen, name) for name in ("arch", "device", "dtype", "compile", "rounds", "steps", "batch")},
        "machine": machine(chosen.device),
        "default": [DEFAULT_DETECTOR],
        "tasks": measure(tasks, chosen.device, chosen.rounds),
        "parts": measure(parts(model, shape, chosen.batch), chosen.device, chosen.rounds),
        "peak_tflops": matmul_peak(chosen.device, dtype, chosen.peak) / 1e12,
        "peak_memory_gib": _peak_memory(chosen.device) / 2**30,
    }
    _write(chosen.out / f"{name_of(found)}.json", found)


def name_of(result: Mapping[str, Any]) -> str:
    """Return the name of a result, which its file and its tables have."""
    compiled = "-compiled" if result["compile"] else ""
    return f"{result['arch']}-{result['device']}-{result['dtype']}{compiled}"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    print(f"wrote {path}; `python -m benchmarks.speed_page` puts it into the documentation")


def _captions(number: int) -> list[str]:
    return [f"{CAPTION} {each}" for each in range(number)]


def _peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
