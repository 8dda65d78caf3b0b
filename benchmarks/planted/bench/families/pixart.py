"""PixArt at toy size: a transformer with cross-attention to T5."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PixArtSigmaPipeline, PixArtTransformer2DModel
from tokenizers import Tokenizer, models, trainers
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from benchmarks.planted import contrastive, denoiser
from benchmarks.planted.bench.families.family import Family, Texts, kept
from benchmarks.planted.text import VOCABULARY, WIDTH

# Shapes: B captions or rows, K text positions, D width of T5; C, H and W of the latent.

HEADS, HEAD_WIDTH, LAYERS = 6, 32, 5
SPECIAL = (("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0))


class PixArtSigma(Family):
    """A transformer whose 16 image positions attend to the hidden states of T5."""

    def __init__(self, texts: Texts) -> None:
        torch.manual_seed(texts.seed)
        self.tokenizer = kept(T5Tokenizer, t5_tokenizer, texts)
        self.encoder = t5(self.tokenizer)
        ids_NK, mask_NK = self._tokens(texts.captions)

        def embed(pick: Tensor) -> Tensor:
            mask_BK = mask_NK[pick]
            hidden_BKD = self.encoder(ids_NK[pick], attention_mask=mask_BK).last_hidden_state
            return (hidden_BKD * mask_BK[..., None]).sum(1) / mask_BK.sum(1, keepdim=True)

        saved = texts.checkpoints / "contrastive.pt"
        contrastive.align(self.encoder, embed, texts.pictures_NCHW, saved, texts.seed, texts.steps)
        self.network = transformer()
        ids_TK, self._mask_TK = self._tokens(texts.trained)
        with torch.no_grad():
            self._hidden_TKD = self.encoder(ids_TK, attention_mask=self._mask_TK).last_hidden_state

    def _tokens(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Return ids and mask of captions in lower case, padded to the longest; the mask hides all padding."""
        found = self.tokenizer([caption.lower() for caption in captions], padding=True, return_tensors="pt")
        return found.input_ids, found.attention_mask

    def predict(self, noisy_BCHW: Tensor, time_B: Tensor, text_B: Tensor) -> Tensor:
        """Run the transformer (see `Family`)."""
        predicted_BCHW: Tensor = self.network(
            noisy_BCHW,
            encoder_hidden_states=self._hidden_TKD[text_B],
            timestep=time_B,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            encoder_attention_mask=self._mask_TK[text_B],
        ).sample
        return predicted_BCHW

    def save(self, folder: Path, vae: AutoencoderKL) -> None:
        """Save a PixArtSigmaPipeline (see `Family`)."""
        PixArtSigmaPipeline(
            vae=vae,
            text_encoder=self.encoder,
            tokenizer=self.tokenizer,
            transformer=self.network.eval(),
            scheduler=denoiser.scheduler(),
        ).save_pretrained(folder, safe_serialization=True)


def t5_tokenizer(captions: list[str]) -> T5Tokenizer:
    """Train a unigram tokenizer with 2,000 pieces that otherwise equals T5's."""
    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = T5Tokenizer(vocab=list(SPECIAL), extra_ids=0).backend_tokenizer.pre_tokenizer
    trainer = trainers.UnigramTrainer(vocab_size=VOCABULARY - len(SPECIAL), show_progress=False)
    learner.train_from_iterator([caption.lower() for caption in captions], trainer)
    pieces = json.loads(learner.to_str())["model"]["vocab"]
    return T5Tokenizer(vocab=[*SPECIAL, *((piece, score) for piece, score in pieces)], extra_ids=0)


def t5(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Return an untrained encoder with three layers of width 128."""
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=WIDTH // 4,
            d_ff=4 * WIDTH,
            num_layers=3,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )


def transformer() -> PixArtTransformer2DModel:
    """Return an untrained transformer with 3.4 million parameters."""
    return PixArtTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_WIDTH,
        cross_attention_dim=HEADS * HEAD_WIDTH,
        caption_channels=WIDTH,
    )
