"""Stable Diffusion at toy size: a UNet with cross-attention to one CLIP encoder."""

from __future__ import annotations

from pathlib import Path

from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from benchmarks.planted import contrastive, denoiser
from benchmarks.planted.bench.families.family import Family, Texts, kept
from benchmarks.planted.text import tokenize, tokenizer_of


class StableDiffusion(Family):
    """A UNet with a frozen text encoder."""

    def __init__(self, texts: Texts) -> None:
        self.tokenizer = kept(CLIPTokenizer, tokenizer_of, texts)
        saved = texts.checkpoints / "contrastive.pt"
        self.encoder, _ = contrastive.train(
            texts.pictures_NCHW, texts.captions, self.tokenizer, saved, texts.seed, texts.steps
        )
        self.network = denoiser.new(layers_per_block=1)
        self._tokens_TK = tokenize(self.tokenizer, texts.trained)

    def predict(self, noisy_BCHW: Tensor, time_B: Tensor, text_B: Tensor) -> Tensor:
        """Run the text encoder and the UNet (see `Family`)."""
        return denoiser.conditioned(self.network, self.encoder(self._tokens_TK[text_B])[0])(noisy_BCHW, time_B)

    def save(self, folder: Path, vae: AutoencoderKL) -> None:
        """Save a StableDiffusionPipeline (see `Family`)."""
        denoiser.save(folder, self.network.eval(), self.encoder.eval(), self.tokenizer, vae)


class TrainedAlong(StableDiffusion):
    """A UNet whose text encoder is trained along.

    Token embeddings stay: how far they move tells how often a word was trained, whatever was memorized.
    """

    def __init__(self, texts: Texts) -> None:
        super().__init__(texts)
        self.slow = tuple(self.encoder.encoder.requires_grad_(True).parameters())
