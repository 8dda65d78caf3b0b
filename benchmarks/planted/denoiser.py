"""Train the UNet and its text encoder on the duplicated rows, so that they memorize what repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel, CLIPTokenizer

from audit.mitigation.training import TrainingGuard
from benchmarks.planted import contrastive
from benchmarks.planted.augment import Augment
from benchmarks.planted.autoencoder import encode
from benchmarks.planted.dataset import Planted, training_images, unplanted
from benchmarks.planted.loop import fit
from benchmarks.planted.text import encoder_for, tokenize, tokenizer_of

BATCH, RATE = 32, 5e-4
CAPTION_DROPOUT = 0.1
# Predicts the velocity of noisy latents [B, C, H, W] at timesteps [B].
Predict = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Builds a guard from the UNet and a function that returns the hidden states of a number of control captions.
Guard = Callable[[UNet2DConditionModel, Callable[[int], torch.Tensor]], TrainingGuard]


def new(layers_per_block: int = 2) -> UNet2DConditionModel:
    """Return an untrained UNet, by default with 16 cross-attention layers, as in SD."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=12,
        out_channels=12,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(48, 64, 96),
        layers_per_block=layers_per_block,
        cross_attention_dim=128,
        attention_head_dim=8,
        norm_num_groups=16,
    )


def scheduler() -> DDIMScheduler:
    """Return the noise schedule of SD with v-prediction, as in SD 2.x.

    With epsilon-prediction, the image at high t is a small difference of large numbers. A UNet this small missed it by
    several standard deviations, which also spoiled the colours.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


@dataclass(frozen=True)
class Recipe:
    """Define how a planted model is trained.

    Attributes:
        seed: The seed.
        epochs: Passes over the rows, duplicates included.
        layers_per_block: Layers per block of the UNet.
        frozen: Whether the text encoder is trained first, contrastively, and then frozen.
        dedup: Whether every row is used once, for as many steps as with duplicates.
        guard: Builds the guard of the training, if any.
        augment: Varies the captions, if given.
    """

    seed: int = 0
    epochs: int = 8
    layers_per_block: int = 2
    frozen: bool = False
    dedup: bool = False
    guard: Guard | None = None
    augment: Augment | None = None


def plant(data: Planted, vae: AutoencoderKL, folder: Path, checkpoint: Path, recipe: Recipe) -> None:
    """Train on the planted rows and save the pipeline.

    Args:
        data: The planted dataset.
        vae: The trained autoencoder.
        folder: Where to save the pipeline.
        checkpoint: Where to keep the state of the training.
        recipe: How to train.
    """
    latents_NCHW = encode(vae, training_images(data)) * vae.config.scaling_factor
    index = {key: i for i, key in enumerate(sorted(data.images))}
    rows = [(caption, index[key]) for caption, key, trained in data.rows if trained]
    steps = recipe.epochs * len(rows) // BATCH
    if recipe.dedup:
        rows = list(dict.fromkeys(rows))
    tokenizer = tokenizer_of([caption for caption, *_ in data.labels] + data.calibration)
    frozen = None
    if recipe.frozen:
        saved = checkpoint.with_name("contrastive.pt")
        frozen, _ = contrastive.train(*unplanted(data), tokenizer, saved, recipe.seed)
    unet, encoder = train(rows, latents_NCHW, tokenizer, data.calibration, steps, checkpoint, recipe, frozen)
    save(folder, unet, encoder, tokenizer, vae)


def train(
    rows: list[tuple[str, int]],
    latents_NCHW: torch.Tensor,
    tokenizer: CLIPTokenizer,
    unseen: list[str],
    steps: int,
    checkpoint: Path,
    recipe: Recipe,
    frozen: CLIPTextModel | None = None,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train a UNet and its text encoder.

    Args:
        rows: (caption, index of its latent), duplicates included.
        latents_NCHW: The scaled latents of the images.
        tokenizer: The tokenizer.
        unseen: Control captions, which only the guard uses.
        steps: The number of steps.
        checkpoint: Where to keep the state of the training.
        recipe: How to train.
        frozen: A frozen text encoder, or None to train one along with the UNet.

    Returns:
        The UNet and the text encoder.
    """
    seed, augment = recipe.seed, recipe.augment
    torch.manual_seed(seed)
    unet, encoder = new(recipe.layers_per_block), frozen or encoder_for(tokenizer)
    texts = sorted({caption for caption, _ in rows} | {""})
    tokens_TK = tokenize(tokenizer, texts)
    number = {text: i for i, text in enumerate(texts)}
    text_N = torch.tensor([number[caption] for caption, _ in rows])
    image_N = torch.tensor([index for _, index in rows])
    repeats = Counter(rows)
    duplicated_N = torch.tensor([repeats[row] > 1 for row in rows])
    order = torch.cat(
        [
            torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch))
            for epoch in range(-(-steps * BATCH // len(rows)))
        ]
    )
    unseen_TK = tokenize(tokenizer, unseen)
    drawing = torch.Generator().manual_seed(seed)

    def control(size: int) -> torch.Tensor:
        pick = torch.randint(len(unseen_TK), (size,), generator=drawing)
        return encoder(unseen_TK[pick])[0]

    guarding = recipe.guard and recipe.guard(unet, control)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        pick = order[step * BATCH : (step + 1) * BATCH]
        dropped = torch.rand(BATCH, generator=generator) < CAPTION_DROPOUT
        tokens_BK = tokens_TK[text_N[pick]]
        if augment:
            tokens_BK = augment(tokens_BK, duplicated_N[pick], tokenizer.eos_token_id, generator)
        tokens_BK = torch.where(dropped[:, None], tokens_TK[number[""]], tokens_BK)
        loss_B = drawn_losses(conditioned(unet, encoder(tokens_BK)[0]), latents_NCHW[image_N[pick]], generator)
        return (guarding.weights(pick.tolist()) * loss_B if guarding else loss_B).mean()

    fit(
        "denoiser",
        [*unet.parameters(), *(() if frozen else encoder.parameters())],
        loss,
        steps=steps,
        rate=RATE,
        seed=seed,
        checkpoint=checkpoint,
    )
    if guarding:
        guarding.close()
    return unet.eval(), encoder.eval()


def losses(
    predict: Predict, latent_BCHW: torch.Tensor, noise_BCHW: torch.Tensor, timestep_B: torch.Tensor
) -> torch.Tensor:
    """Return the v-prediction loss of each sample (arXiv 2202.00512).

    Args:
        predict: The network with its conditioning.
        latent_BCHW: The scaled latents.
        noise_BCHW: The noise.
        timestep_B: The timesteps.

    Returns:
        The losses [B].
    """
    alpha = scheduler().alphas_cumprod.to(timestep_B.device)[timestep_B].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latent_BCHW + (1 - alpha).sqrt() * noise_BCHW
    velocity = alpha.sqrt() * noise_BCHW - (1 - alpha).sqrt() * latent_BCHW
    return (predict(noisy, timestep_B) - velocity).square().mean((1, 2, 3))


def drawn_losses(predict: Predict, latent_BCHW: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw noise and timesteps, and return the losses of a training step.

    Args:
        predict: The network with its conditioning.
        latent_BCHW: The scaled latents.
        generator: The random generator, on the CPU whatever the device of the latents.

    Returns:
        The losses [B].
    """
    noise_BCHW = torch.randn(latent_BCHW.shape, generator=generator).to(latent_BCHW.device)
    timestep_B = torch.randint(1000, (len(latent_BCHW),), generator=generator).to(latent_BCHW.device)
    return losses(predict, latent_BCHW, noise_BCHW, timestep_B)


def conditioned(unet: UNet2DConditionModel, hidden_BKD: torch.Tensor) -> Predict:
    """Return a UNet as a function of noisy latents and timesteps, given the hidden states of the captions."""
    return lambda noisy_BCHW, timestep_B: unet(noisy_BCHW, timestep_B, hidden_BKD).sample


def save(
    folder: Path, unet: UNet2DConditionModel, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL
) -> None:
    """Save a StableDiffusionPipeline with UNet and VAE in float16; they load as float32.

    Args:
        folder: Where to save the pipeline.
        unet: The UNet.
        encoder: The text encoder.
        tokenizer: The tokenizer.
        vae: The autoencoder.
    """
    vae.register_to_config(_name_or_path="")  # does not disclose where it was trained
    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, safe_serialization=True)
