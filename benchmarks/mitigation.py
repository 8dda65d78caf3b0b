"""Measure the time of mitigation: medians of paired ratios, mitigated relative to plain, for any model.

python -m benchmarks.mitigation [--model FOLDER] [--device cuda]
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import audit
from audit.mitigation.training import CONTROL_EVERY
from audit.models.sd import HIDDEN, StableDiffusion
from benchmarks.paired import PAIRS, ratio
from pipelines.demo.demo import bundle

PROMPTS = ["a tidy flat picture of a headphone on a white background for a wall", "pouch, noto"] * 2


def main(
    model: Annotated[Path | None, typer.Option(help="A diffusers folder; by default the bundled toy model.")] = None,
    device: str = "cpu",
    steps: int = 10,
    batch_size: int = 32,
) -> None:
    """Print the ratios for generation and for a training step."""
    torch.set_num_threads(1)
    loaded = audit.load_model(model or bundle() / "model", device=device)
    pipeline = loaded.pipeline()
    for keep in ("eos", "words", "all"):
        for prompts, name in ((PROMPTS[:1] * 4, "equal lengths"), (PROMPTS, "unequal lengths")):

            def plain(prompts: list[str] = prompts) -> None:
                pipeline(prompts, num_inference_steps=steps, output_type="latent")

            def mitigated(prompts: list[str] = prompts, keep: Any = keep) -> None:
                with audit.mitigated(pipeline, audit.Rescale(bos_scale=1.25, keep=keep)):
                    pipeline(prompts, num_inference_steps=steps, output_type="latent")

            print(f"generation, keep={keep}, {name}: {ratio(plain, mitigated, device)}", flush=True)

    channels, height, width = loaded.latent_shape
    noisy = torch.randn(batch_size, channels, height, width, device=device)
    timesteps = torch.randint(1000, (batch_size,), device=device)
    # Copies outside of inference mode, which gradients need.
    hidden, control = (loaded.encode([prompt] * batch_size).tensors[HIDDEN].clone() for prompt in PROMPTS[:2])

    def stepping(network: torch.nn.Module, guard: audit.TrainingGuard | None) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)

        def step() -> None:
            for _ in range(round_of):
                loss_B = network(noisy, timesteps, hidden).sample.square().mean((1, 2, 3))
                (loss_B if guard is None else guard.weights() * loss_B).mean().backward()
                optimizer.step()
                optimizer.zero_grad()

        return step

    assert isinstance(loaded, StableDiffusion)
    unet = loaded.unet.requires_grad_(True).train()
    for name, given, round_of in (
        ("the paper's rule", None, 1),
        ("control captions", lambda _: control, CONTROL_EVERY),
    ):
        watched = copy.deepcopy(unet)
        guard = audit.TrainingGuard(watched, max_quantile=0.99, control_captions=given)
        pairs = PAIRS if round_of == 1 else 5
        found = ratio(stepping(unet, None), stepping(watched, guard), device, pairs)
        print(f"training step, guard with {name}: {found}", flush=True)
        guard.close()


if __name__ == "__main__":
    typer.run(main)
