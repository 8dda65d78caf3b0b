"""Variants of a caption, and the self-control: how a caption scores beside captions that differ from it by a word."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

import pyarrow as pa

from audit.calibration.calibration import Calibration
from audit.duplicates.captions import caption_id
from audit.models.model import Model
from audit.scoring.screening import screen

VARIANTS = 8
CONTENT = 4  # letters: shorter words are seldom content


def variants(caption: str, words: Sequence[str], count: int = VARIANTS) -> list[str]:
    """Captions of about the same length that are not this one; the same for the same caption and `words`.

    In turn a content word is swapped for another one, a word is inserted, and the words are shuffled; new words are
    drawn from `words`. Captions of fewer than two words have fewer variants, the empty one has none.
    """
    drawn = random.Random(caption_id(caption))
    own = caption.split()
    found: dict[str, None] = {}
    for attempt in range(4 * count if own and words else 0):
        changed = list(own)
        if attempt % 3 == 0:
            long = [i for i, word in enumerate(own) if len(word) >= CONTENT]
            changed[drawn.choice(long or range(len(own)))] = drawn.choice(words)
        elif attempt % 3 == 1:
            changed.insert(drawn.randrange(len(own) + 1), drawn.choice(words))
        else:
            drawn.shuffle(changed)
        text = " ".join(changed)
        if changed != own and len(found) < count:
            found[text] = None
    return list(found)


def content_words(captions: Sequence[str]) -> list[str]:
    """The words of captions that variants may draw from, each once, sorted."""
    return sorted({word for caption in captions for word in caption.split() if len(word) >= CONTENT})


def perturbation_margin(
    model: Model,
    calibration: Calibration,
    captions: Sequence[str],
    words: Sequence[str],
    batch_size: int | None = None,
    reference: Model | None = None,
) -> pa.Table:
    """How much more a caption scores than its variants do: one row a caption, `caption`, `perturbation_margin`.

    The caption's score minus the median of its variants'; style, length and language cancel. Null for a caption
    without variants. Costs a screen of eight captions each.
    """
    of_caption = {caption: variants(caption, words) for caption in dict.fromkeys(captions)}
    texts = list(dict.fromkeys(text for caption, others in of_caption.items() for text in (caption, *others)))
    seeds = calibration.context["seeds"]
    scored = calibration.score(screen(model, texts, seeds, (calibration.detector,), batch_size, reference))
    score_of = dict(zip(scored["caption"].to_pylist(), scored["score"].to_pylist(), strict=True))
    values = []
    for caption, others in of_caption.items():
        known = [score_of[text] for text in others if text in score_of]
        values.append(score_of[caption] - median(known) if known and caption in score_of else None)
    return pa.table(
        {"caption": pa.array(of_caption, pa.string()), "perturbation_margin": pa.array(values, pa.float64())}
    )
