"""Train the AutoencoderKL of the planted model, which maps 64×64 px to 8×8×12."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from benchmarks.planted.loop import fit

STEPS, BATCH, RATE, KL = 5000, 16, 1.5e-3, 1e-6  # the KL is a sum over 768 values; 1e-5 collapses half of the channels


def new() -> AutoencoderKL:
    """Return an untrained autoencoder with about 1 M parameters."""
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
    """Train an autoencoder with L1 + 1e-6 KL, normalise its latents and save it.

    Args:
        images_NCHW: The images, uint8 [N, 3, 64, 64].
        folder: Where to save the autoencoder.
        checkpoint: Where to keep the state of the training.
        seed: The seed.

    Returns:
        The trained autoencoder.
    """
    torch.manual_seed(seed)
    vae = new()

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(len(images_NCHW), (BATCH,), generator=generator)
        batch = images_NCHW[pick].float() / 127.5 - 1
        with torch.autocast("cpu", torch.bfloat16):  # 1.5 times as fast
            posterior = vae.encode(batch).latent_dist
            decoded = vae.decode(posterior.sample(generator=generator)).sample
        return (decoded.float() - batch).abs().mean() + KL * posterior.kl().float().mean()

    fit("autoencoder", vae.parameters(), loss, steps=STEPS, rate=RATE, seed=seed, checkpoint=checkpoint)
    vae.eval()
    normalise(vae, encode(vae, images_NCHW))
    print(f"autoencoder PSNR {psnr(vae, images_NCHW[:512]):.1f} dB", flush=True)
    vae.save_pretrained(folder)
    return vae


@torch.no_grad()
def normalise(vae: AutoencoderKL, latents_NCHW: torch.Tensor) -> None:
    """Normalise every latent channel to zero mean and unit variance, in the 1x1 convolutions around the latents.

    A single scaling factor cannot do that, and the denoiser learns channels badly whose variance far exceeds the noise.
    """
    mean_C, std_C = latents_NCHW.mean((0, 2, 3)), latents_NCHW.std((0, 2, 3))
    channels = len(mean_C)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += (after.weight[:, :, 0, 0] * mean_C).sum(1)
    after.weight *= std_C[None, :, None, None]
    before.weight[:channels] /= std_C[:, None, None, None]
    before.bias[:channels] = (before.bias[:channels] - mean_C) / std_C
    before.bias[channels:] -= 2 * std_C.log()  # the second half is the log variance
    vae.register_to_config(scaling_factor=1.0)


@torch.no_grad()
def encode(vae: AutoencoderKL, images_NCHW: torch.Tensor) -> torch.Tensor:
    """Return the unscaled mean latents of uint8 images."""
    parts = [vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in images_NCHW.split(64)]
    return torch.cat(parts)


@torch.no_grad()
def psnr(vae: AutoencoderKL, images_NCHW: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of the reconstruction, in dB."""
    error = 0.0
    for part in images_NCHW.split(64):
        truth = part.float() / 255
        decoded = vae.decode(vae.encode(truth * 2 - 1).latent_dist.mean).sample / 2 + 0.5
        error += (decoded.clamp(0, 1) - truth).square().mean().item() * len(part)
    return float(-10 * torch.tensor(error / len(images_NCHW)).log10())
