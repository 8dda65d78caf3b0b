"""The tokenizer from open_clip's vocabulary is CLIP's, as transformers loads the published one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from transformers import CLIPTokenizer

from audit.models.vocabulary import VOCABULARY, clip_tokenizer

CAPTIONS = [
    "",
    "a dog",
    "hello! a cat!! dog ! x?!",
    "it's a dog's 12345",
    "Crème brûlée 🐕",
    "صورة كلب",
    "a " * 99,
    "\x00\n",
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The vocabulary of a tokenizer folder as it is published with SD 1.x and 2.x."""
    folder = tmp_path_factory.mktemp("tokenizer")
    reference = SimpleTokenizer()
    with gzip.open(default_bpe()) as file:
        merges = file.read().decode().split("\n")[1 : 48894 + 1]
    tokens = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {tokens.get(token, token): number for token, number in reference.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return folder


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"])
def both(request: pytest.FixtureRequest, published: Path) -> tuple[CLIPTokenizer, ...]:
    """(ours, that of the published folder)."""
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (published / "special_tokens_map.json").write_text(json.dumps(special | {"pad_token": request.param}))
    config = {"do_lower_case": True, "model_max_length": 77, "pad_token": "<|endoftext|>", "errors": "replace"}
    (published / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "CLIPTokenizer"}))
    return clip_tokenizer(request.param), CLIPTokenizer.from_pretrained(published)


def ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    found: list[int] = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
    return found


def test_tokens_and_padding_are_those_of_the_published_tokenizer(both: tuple[CLIPTokenizer, ...]) -> None:
    ours, published = both
    assert len(ours) == VOCABULARY
    assert ours.get_vocab() == published.get_vocab()
    assert (ours.pad_token_id, ours.model_max_length) == (published.pad_token_id, 77)
    for caption in CAPTIONS:
        assert ids(ours, caption) == ids(published, caption)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_any_text_has_the_same_tokens(both: tuple[CLIPTokenizer, ...], text: str) -> None:
    ours, published = both
    assert ids(ours, text) == ids(published, text)


def test_tokens_are_those_of_open_clip() -> None:
    ours, reference = clip_tokenizer("<|endoftext|>"), SimpleTokenizer()
    for caption in ["a dog", "hello! a cat!! dog ! x?!", "it's a dog's 12345", "Crème brûlée 🐕", "صورة كلب"]:
        assert ours(caption).input_ids == [49406, *reference.encode(caption), 49407]
