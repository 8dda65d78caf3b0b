"""Write new captions in the style of given ones, as control captions of a model that is already trained.

The words that say what a caption is about are replaced by such words of other captions. They are taken from the same
place of the same template if several captions share a template, and otherwise have the same form and a similar length.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import pyarrow as pa

from audit.duplicates.captions import caption_groups
from audit.errors import AuditError

PROPOSALS = pa.schema([("caption", pa.string()), ("method", pa.string()), ("source", pa.string())])
# A word is a subject if at most this fraction of the captions has it. The other words make up the template.
RARE = 0.01
MOST_SWAPPED = 4
# A replacement may be this many letters longer or shorter.
SLACK = 2
ATTEMPTS = 20
CAN = (
    "They can stand for the style of the dataset: its templates, lengths and frequent words. A model that gives them "
    "high scores does so because of the style."
)
CANNOT = (
    "They cannot stand for captions of the source that were never trained on: the new combinations may be unnatural, "
    "which can lower or raise scores, and single words of them were trained on. A held-out split is better "
    "(`crossaudit controls holdout`, before a training)."
)
_WORD = re.compile(r"\w+|\W+")


def rewrite(captions: Sequence[str], count: int, seed: int = 0) -> pa.Table:
    """Propose captions that are not near-identical to a given caption or to each other.

    Args:
        captions: Captions of the dataset.
        count: Number of proposals.
        seed: Seed of the choices.

    Returns:
        Rows of PROPOSALS, `count` or fewer: the caption, how it was made (template | swap), and the caption that it is
        a rewrite of.

    Raises:
        AuditError: Nothing can be proposed.
    """
    captions = sorted(set(captions))
    rng = random.Random(seed)
    pieces = [_WORD.findall(text) for text in captions]
    frequency = Counter(word for found in pieces for word in set(map(str.casefold, found)))
    subjects = [_subjects(found, frequency, RARE * len(captions)) for found in pieces]
    by_slot, by_form = defaultdict(list), defaultdict(list)
    for found, places in zip(pieces, subjects, strict=True):
        for number, at in enumerate(places):
            by_slot[_template(found, places), number].append(found[at])
            by_form[_form(found[at])].append(found[at])
    proposed: dict[str, tuple[str, str]] = {}
    order = list(range(len(captions))) * ATTEMPTS
    rng.shuffle(order)
    for row in order:
        if len(proposed) >= 2 * count:
            break
        made = _rewritten(pieces[row], subjects[row], by_slot, by_form, rng)
        if made is not None and made[0] not in proposed:
            proposed[made[0]] = (made[1], captions[row])
    kept = _new(list(proposed), captions)[:count]
    if not kept:
        raise AuditError("no caption can be rewritten", hint="Give more captions; their subjects must differ.")
    rows = [{"caption": text, "method": proposed[text][0], "source": proposed[text][1]} for text in kept]
    return pa.Table.from_pylist(rows, schema=PROPOSALS)


def _rewritten(
    found: list[str], places: list[int], by_slot: dict, by_form: dict, rng: random.Random
) -> tuple[str, str] | None:
    """Return a rewritten caption and how it was made; None if a word has no replacement."""
    if not places:
        return None
    template, written, method = _template(found, places), list(found), "template"
    swapped = places if len(places) <= MOST_SWAPPED else sorted(rng.sample(places, MOST_SWAPPED))
    for at in swapped:
        others = [word for word in by_slot[template, places.index(at)] if word.casefold() != found[at].casefold()]
        if not others:
            method = "swap"
            alike = by_form[_form(found[at])]
            others = [word for word in alike if abs(len(word) - len(found[at])) <= SLACK and word != found[at]]
        if not others:
            return None
        written[at] = rng.choice(others)
    return "".join(written), method


def _new(proposed: list[str], captions: Sequence[str]) -> list[str]:
    """Return the proposals that are near-identical to no caption and to no earlier proposal."""
    group_of = caption_groups([*captions, *proposed])
    seen, kept = set(group_of[: len(captions)]), []
    for text, group in zip(proposed, group_of[len(captions) :], strict=True):
        if group not in seen:
            seen.add(group)
            kept.append(text)
    return kept


def _subjects(found: Sequence[str], frequency: Counter[str], most: float) -> list[int]:
    """Return the places of the words that say what a caption is about: the rare ones, or else the two rarest."""
    places = [at for at, word in enumerate(found) if word.isalpha()]
    rare = [at for at in places if frequency[found[at].casefold()] <= most]
    return rare or sorted(sorted(places, key=lambda at: (frequency[found[at].casefold()], at))[:2])


def _template(found: Sequence[str], places: Sequence[int]) -> str:
    subjects = set(places)
    return "".join("\0" if at in subjects else word.casefold() for at, word in enumerate(found))


def _form(word: str) -> str:
    """Return what a replacement must have in common with a word: its case."""
    return "upper" if word.isupper() else "title" if word[:1].isupper() else "lower"
