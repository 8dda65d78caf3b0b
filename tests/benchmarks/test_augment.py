"""Captions that differ from row to row: what is inserted, shuffled, and left alone."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.planted.augment import INSERTED, insert_tokens, shuffle_tokens

EOS, BOS, LENGTH = 99, 98, 12


def caption(words: list[int]) -> torch.Tensor:
    """Token ids of [BOS, words, EOS ...]."""
    return torch.tensor([[BOS, *words, *[EOS] * (LENGTH - 1 - len(words))]])


words_of = st.lists(st.integers(0, EOS - 2), min_size=0, max_size=LENGTH - 2 - INSERTED)


@given(words_of, st.integers(0, 2**32))
def test_insertion_keeps_the_words_in_order_and_adds_four(words: list[int], seed: int) -> None:
    found = insert_tokens(caption(words), torch.tensor([False]), EOS, torch.Generator().manual_seed(seed))[0].tolist()
    inside = found[1 : found.index(EOS)]
    assert found[0] == BOS
    assert len(found) == LENGTH
    assert set(found[1 + len(inside) :]) == {EOS}
    assert len(inside) == len(words) + INSERTED
    assert BOS not in inside
    rest = iter(inside)
    assert all(word in rest for word in words)  # a subsequence


def test_insertion_into_a_full_caption_still_ends_with_eos() -> None:
    found = insert_tokens(caption(list(range(LENGTH - 2))), torch.tensor([True]), EOS, torch.Generator().manual_seed(0))
    assert found.shape == (1, LENGTH)
    assert found[0, -1] == EOS


@given(words_of, st.integers(0, 2**32))
def test_shuffling_permutes_the_words_of_duplicated_rows_only(words: list[int], seed: int) -> None:
    both = caption(words).repeat(2, 1)
    found = shuffle_tokens(both, torch.tensor([True, False]), EOS, torch.Generator().manual_seed(seed))
    assert found[1].tolist() == both[1].tolist()
    assert sorted(found[0, 1 : 1 + len(words)].tolist()) == sorted(words)
    assert found[0, 0] == BOS
    assert set(found[0, 1 + len(words) :].tolist()) == {EOS}


def test_shuffling_moves_words() -> None:
    found = shuffle_tokens(caption(list(range(8))), torch.tensor([True]), EOS, torch.Generator().manual_seed(0))
    assert found[0, 1:9].tolist() != list(range(8))
