"""The AutoencoderKL of the planted model: 64×64 px to 8×8×12."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from benchmarks.planted.loop import fit

STEPS, BATCH, RATE, KL = 5000, 16, 1.5e-3, 1e-5


def new() -> AutoencoderKL:
    """An untrained autoencoder of about 1 M parameters."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        latent_channels=12,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def train(images_NCHW: torch.Tensor, folder: Path, checkpoint: Path, seed: int) -> AutoencoderKL:
    """Train on uint8 images [N, 3, 64, 64] with L1 + 1e-5 KL, scale latents to unit variance and save to `folder`."""
    torch.manual_seed(seed)
    vae = new()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(images_NCHW), (BATCH,), generator=generator)
        batch = images_NCHW[pick].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):  # 1.5 times the steps an hour
            posterior = vae.encode(batch).latent_dist
            decoded = vae.decode(posterior.sample(generator=generator)).sample
        return (decoded.float() - batch).abs().mean() + KL * posterior.kl().float().mean()

    fit("autoencoder", vae.parameters(), loss, steps=STEPS, rate=RATE, seed=seed, checkpoint=checkpoint)
    vae.eval()
    latents = encode(vae, images_NCHW)
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 5))
    print(
        f"autoencoder PSNR {psnr(vae, images_NCHW[:512]):.1f} dB, scaling factor {vae.config.scaling_factor}",
        flush=True,
    )
    vae.save_pretrained(folder)
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, images_NCHW: torch.Tensor) -> torch.Tensor:
    """Mean latents, unscaled, of uint8 images."""
    parts = [vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in images_NCHW.split(64)]
    return torch.cat(parts)


@torch.no_grad()
def psnr(vae: AutoencoderKL, images_NCHW: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of the reconstruction, dB."""
    error = 0.0
    for part in images_NCHW.split(64):
        truth = part.float() / 255
        decoded = vae.decode(vae.encode(truth * 2 - 1).latent_dist.mean).sample / 2 + 0.5
        error += (decoded.clamp(0, 1) - truth).square().mean().item() * len(part)
    return float(-10 * torch.tensor(error / len(images_NCHW)).log10())
