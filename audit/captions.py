"""What makes two captions the same caption, or near-identical ones."""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from functools import cache


def caption_id(caption: str) -> str:
    """The id of one distinct text: 32 hex digits of blake2b over its UTF-8 bytes."""
    return hashlib.blake2b(caption.encode("utf-8"), digest_size=16).hexdigest()


def caption_group(caption: str) -> str:
    """The id of the near-identical captions: equal after case folding, removing punctuation and folding whitespace."""
    folded = caption.casefold().translate(_without_punctuation())
    return caption_id(" ".join(folded.split()))


@cache
def _without_punctuation() -> dict[int, None]:
    codes = range(sys.maxunicode + 1)
    return dict.fromkeys(code for code in codes if unicodedata.category(chr(code)).startswith("P"))
