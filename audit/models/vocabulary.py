"""Make CLIP's tokenizer from the vocabulary shipped with open_clip (`bpe_simple_vocab_16e6.txt.gz`), offline."""

from __future__ import annotations

import gzip
from typing import Any

from transformers import CLIPTokenizer

# 256 bytes, 256 bytes that end a word, the merges, and the two tokens that begin and end a text.
VOCABULARY = 49408


def clip_tokenizer(pad_token: str) -> CLIPTokenizer:
    """Make the tokenizer of CLIP.

    Args:
        pad_token: "<|endoftext|>" for Stable Diffusion 1.x, "!" for 2.x, as in their published tokenizers. With "!",
            transformers gives each "!" in a caption the id of the padding, as it also does in diffusers.
    """
    from open_clip.tokenizer import bytes_to_unicode, default_bpe

    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = lines[1 : VOCABULARY - 2 * 256 - 2 + 1]  # the first line names the version; more merges follow, unused
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    pairs: Any = [tuple(merge.split()) for merge in merges]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)},
        merges=pairs,
        pad_token=pad_token,
        model_max_length=77,
    )
