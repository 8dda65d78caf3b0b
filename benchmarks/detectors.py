"""Measure the time of a generation with detectors relative to one without, and the peak memory.

python -m benchmarks.detectors [--model FOLDER] [--device cuda]
"""

from __future__ import annotations

import resource
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

import audit
from audit.detectors import RUN
from benchmarks.paired import ratio
from pipelines.demo.demo import bundle

CAPTIONS = ["a tidy flat picture of a headphone on a white background for a wall", "pouch, noto"] * 4


def main(
    model: Annotated[Path | None, typer.Option(help="A diffusers folder; by default the bundled toy model.")] = None,
    device: str = "cpu",
    steps: int = 20,
) -> None:
    """Print the ratios, and the peak memory for 1 and 10 times as many steps."""
    torch.set_num_threads(1)
    loaded = audit.load_model(model or bundle() / "model", device=device)

    def generate(*detectors: str, steps: int = steps) -> None:
        audit.generate(loaded, CAPTIONS, steps=steps, detectors=detectors, output="latents", batch_size=len(CAPTIONS))

    for names in [*((name,) for name in RUN), tuple(RUN)]:
        found = ratio(generate, partial(generate, *names), device)
        print(f"generation with {', '.join(names)}: {found}", flush=True)
    for times in (1, 10):
        generate(*RUN, steps=times * steps)
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else _resident()
        print(f"peak memory after {times * steps} steps: {peak / 2**20:.0f} MiB", flush=True)


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    typer.run(main)
