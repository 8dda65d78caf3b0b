"""Build the tokenizer and the text encoder of the planted model from CLIP's own classes, but small."""

from __future__ import annotations

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

VOCABULARY, LENGTH, WIDTH = 2000, 32, 128
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def tokenizer_of(captions: list[str]) -> CLIPTokenizer:
    """Train a byte-pair tokenizer with 2,000 entries that otherwise equals CLIP's. EOS pads, as in SD1."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    clip = CLIPTokenizer().backend_tokenizer
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    size = VOCABULARY - 2 - len(alphabet)  # the vocabulary has the end-of-word form of every byte in any case
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in _merges(learner)][: VOCABULARY - 2 - 2 * len(alphabet)]
    words = alphabet + [byte + "</w>" for byte in alphabet] + ["".join(pair) for pair in merges] + [BOS, EOS]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Return token ids padded to `LENGTH`, [N, 32]."""
    found = tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    return torch.as_tensor(found.input_ids)


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def encoder_for(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Return an untrained causal text encoder with three layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
