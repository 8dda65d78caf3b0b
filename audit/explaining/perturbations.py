"""Compare a caption's score with the scores of variants that differ from it by a word or in word order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import median

import pyarrow as pa

from audit.calibration.calibration import Calibration
from audit.calibration.screening import screen_as
from audit.duplicates.captions import caption_id
from audit.models.model import Model

VARIANTS = 8
CONTENT = 4  # letters; shorter words are seldom content words


def variants(caption: str, words: Sequence[str], count: int = VARIANTS) -> list[str]:
    """Make variants of a caption of about the same length; equal arguments give equal variants.

    In turn, a content word is swapped for another one, a word is inserted, or the words are shuffled. A caption of
    fewer than two words has fewer variants; the empty caption has none.

    Args:
        caption: The caption.
        words: Words to draw new words from.
        count: Number of variants at most.

    Returns:
        Distinct variants, at most `count`; none equals the caption.
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
    """List the words of captions that variants may draw from, each once, sorted."""
    return sorted({word for caption in captions for word in caption.split() if len(word) >= CONTENT})


def perturbation_margin(
    model: Model,
    calibration: Calibration,
    captions: Sequence[str],
    words: Sequence[str],
    batch_size: int | None = None,
    reference: Model | None = None,
) -> pa.Table:
    """Compute how much higher a caption scores than its variants.

    The margin is the caption's score minus the median of its variants' scores, so that style, length and language
    cancel out. It costs a screen of eight variants per caption.

    Args:
        model: The model to screen with.
        calibration: Calibration of a screening detector; its seeds and resolution are used.
        captions: Captions to measure.
        words: Words to draw the variants' new words from.
        batch_size: Rows per forward; by default as many as fit in memory.
        reference: Reference model, if the calibration was made with one.

    Returns:
        One row per caption: `caption`, `perturbation_margin`. Null for a caption without variants.
    """
    of_caption = {caption: variants(caption, words) for caption in dict.fromkeys(captions)}
    texts = list(dict.fromkeys(text for caption, others in of_caption.items() for text in (caption, *others)))
    scored = calibration.score(screen_as(calibration, model, texts, batch_size, reference))
    score_of = dict(zip(scored["caption"].to_pylist(), scored["score"].to_pylist(), strict=True))
    values = []
    for caption, others in of_caption.items():
        known = [score_of[text] for text in others if text in score_of]
        values.append(score_of[caption] - median(known) if known and caption in score_of else None)
    return pa.table(
        {"caption": pa.array(of_caption, pa.string()), "perturbation_margin": pa.array(values, pa.float64())}
    )
