from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from audit.captions import caption_group, caption_id


def test_the_id_is_blake2b_of_the_utf8_bytes() -> None:
    assert caption_id("a café ☕") == hashlib.blake2b("a café ☕".encode(), digest_size=16).hexdigest()
    assert len(caption_id("")) == 32


@given(st.text(), st.text())
def test_two_texts_share_an_id_only_if_they_are_the_same(one: str, other: str) -> None:
    assert (caption_id(one) == caption_id(other)) == (one == other)


def test_case_punctuation_and_whitespace_make_no_other_group() -> None:
    same = ["A photo, of a dog!", "a  photo of\ta DOG", " a photo of a dog "]
    assert len({caption_group(text) for text in same}) == 1


def test_other_words_emoji_and_scripts_make_other_groups() -> None:
    texts = ["a photo of a dog", "a photo of a cat", "a photo of a 🐕", "صورة كلب", "صورة قط", ""]
    assert len({caption_group(text) for text in texts}) == len(texts)
