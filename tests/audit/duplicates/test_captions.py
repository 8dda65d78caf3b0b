from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.duplicates import captions as captions_of
from audit.duplicates.captions import caption_groups, caption_id, components, near_identical

LONG = "a very long story of a grey cat that slept on the roof of an old house by the sea, while it rained all night"


def test_the_id_is_blake2b_of_the_utf8_bytes() -> None:
    assert caption_id("a café ☕") == hashlib.blake2b("a café ☕".encode(), digest_size=16).hexdigest()
    assert len(caption_id("")) == 32


@given(st.text(), st.text())
def test_two_texts_share_an_id_only_if_they_are_the_same(one: str, other: str) -> None:
    assert (caption_id(one) == caption_id(other)) == (one == other)


@pytest.mark.parametrize(
    "same",
    [
        ["A photo, of a dog!", "a  photo of\ta DOG", " a photo of a dog "],
        [LONG, LONG.replace("slept", "sleptt"), LONG + "..."],
        ["", "...", " \n"],
    ],
    ids=["case, punctuation and whitespace", "a slip of the pen in a long one", "nothing"],
)
def test_near_identical_captions_are_one_group_named_by_the_smallest_id(same: list[str]) -> None:
    assert set(caption_groups(same)) == {min(map(caption_id, same))}


def test_captions_of_one_template_are_different() -> None:
    """However many there are: what differs is what they show."""
    texts = [f"a soft flat picture of a {thing} on a white background" for thing in ("ram", "tram", "cat", "🐕")]
    texts += [f"lamp number {number}" for number in range(300)]
    texts += ["a photo of a dog", "a photo of a cat", "صورة كلب", "صورة قط", "", "ram, fluent", "tram, fluent"]
    assert caption_groups(texts) == [caption_id(text) for text in texts]


def jaccard(one: str, other: str) -> float:
    """Of the sets of four letters in a row; texts that are folded already."""
    sets = [{(f" {text}" + "$" * 3)[at : at + 4] for at in range(len(text) + 1)} for text in (one, other)]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@given(st.text("abc", min_size=4, max_size=60), st.text("abc", min_size=4, max_size=60), st.integers(0, 50))
def test_near_is_the_overlap_of_the_shingles(one: str, other: str, at: int) -> None:
    for text in (other, one[:at] + other[:1] + one[at:]):
        assert near_identical([one, text], np.array([[0, 1]])) == [jaccard(one, text) >= captions_of.NEAR]


def test_minhash_finds_nearly_all_pairs_that_there_are() -> None:
    """Of a caption and one with two letters changed, at a similarity of 0.9 or a little more."""
    rng = np.random.default_rng(0)
    found, pairs = 0, 0
    for _ in range(120):
        text = "".join(rng.choice(list("abcdefghijklmnop"), 104))
        other = text[:30] + "zz" + text[32:]
        if near_identical([text, other], np.array([[0, 1]]))[0]:
            pairs += 1
            found += len(set(caption_groups([text, other]))) == 1
    assert pairs > 60
    assert found / pairs > 0.95


@settings(max_examples=25)
@given(st.permutations(range(12)))
def test_groups_depend_neither_on_order_nor_on_chance(order: list[int]) -> None:
    texts = [LONG[: len(LONG) - cut] for cut in range(0, 30, 5)] + [f"lamp {number}" for number in range(6)]
    given_order = [texts[at] for at in order]
    groups = dict(zip(texts, caption_groups(texts), strict=True))
    assert dict(zip(given_order, caption_groups(given_order), strict=True)) == groups


def test_components_are_named_by_their_smallest_number() -> None:
    members, roots = components(np.array([[7, 9], [2, 7], [4, 5], [9, 11]]))
    assert dict(zip(members.tolist(), roots.tolist(), strict=True)) == {2: 2, 7: 2, 9: 2, 11: 2, 4: 4, 5: 4}
    assert [len(found) for found in components(np.zeros((0, 2), np.int64))] == [0, 0]
