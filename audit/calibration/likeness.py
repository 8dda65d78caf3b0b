"""Test whether control captions look like the captions of the dataset: a two-sample test by classification.

A classifier that sees only the text is trained to tell control captions from captions of the dataset (Lopez-Paz and
Oquab, 2017). If it succeeds on captions of topics that it was not trained on, the two differ in style, and p-values
against these control captions say little about the dataset.

Folds keep captions of one topic together, because the topics of a small set of controls differ from those of the
dataset even if both were drawn at random: captions are of one topic if they have the same caption group or the same
rarest word.

Shapes: N captions, control captions before captions of the dataset; K n-grams and other features; G topics.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy import sparse, stats

from audit.duplicates.components import components

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# The largest AUC that control captions like the data may have (docs/decisions/0024-unlike-controls.md).
LIMIT = 0.75
# The test needs this many topics on each side.
MIN_TOPICS = 50
FOLDS = 5
CONFIDENCE = 0.95
# Most words shown per side, and the smallest z of the difference between the shares of captions that have a word.
TELLTALES, MIN_Z = 8, 4.0
_LETTERS = 1000  # characters of a caption that the classifier reads
_COMMON = 0.005  # an n-gram is a feature if this fraction of the captions has it
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Telltale:
    """A word that is more frequent on one side.

    Attributes:
        word: The word, in lower case.
        controls: Fraction of the control captions that have it.
        captions: Fraction of the captions of the dataset that have it.
    """

    word: str
    controls: float
    captions: float


@dataclass(frozen=True)
class Likeness:
    """How well a classifier tells control captions from captions of the dataset.

    Attributes:
        auc: Probability that it ranks a control caption above a caption of the dataset; 0.5 if they are alike. None if
            either side has too few topics.
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        controls: Number of control captions compared.
        captions: Number of captions of the dataset compared.
        control_topics: Number of topics of the control captions.
        caption_topics: Number of topics of the captions of the dataset.
        of_controls: Words that tell control captions, most telling first.
        of_captions: Words that tell captions of the dataset, most telling first.
    """

    auc: float | None
    low: float | None
    high: float | None
    controls: int
    captions: int
    control_topics: int
    caption_topics: int
    of_controls: tuple[Telltale, ...] = ()
    of_captions: tuple[Telltale, ...] = ()

    @property
    def unlike(self) -> bool:
        """Whether the AUC is clearly above LIMIT: the lower end of its interval is."""
        return self.low is not None and self.low > LIMIT


def compare(controls: pa.Table, captions: pa.Table, seed: int = 0) -> Likeness:
    """Compare control captions with captions of the dataset.

    The result does not depend on the order of the rows.

    Args:
        controls: Control captions: `caption`, `caption_group` and `truncated` (whether the tokenizer truncates it).
        captions: A random sample of the captions of the dataset, with the same columns.
        seed: Seed of the folds.
    """
    columns = ["caption", "caption_group", "truncated"]
    both = [table.select(columns).sort_by("caption") for table in (controls, captions)]
    texts = [text for table in both for text in table["caption"].to_pylist()]
    is_control_N = np.repeat([True, False], [len(table) for table in both])
    words = [set(_WORD.findall(text.casefold()[:_LETTERS])) for text in texts]
    topic_N = _topics([group for table in both for group in table["caption_group"].to_pylist()], words)
    counts: dict[str, Any] = {
        "controls": len(both[0]),
        "captions": len(both[1]),
        "control_topics": len(np.unique(topic_N[is_control_N])),
        "caption_topics": len(np.unique(topic_N[~is_control_N])),
    }
    if min(counts["control_topics"], counts["caption_topics"]) < MIN_TOPICS:
        return Likeness(None, None, None, **counts)
    truncated_N = np.array([bool(value) for table in both for value in table["truncated"].to_pylist()])
    fold_N = _folds(topic_N, texts, seed)
    score_N = _scores(_features(texts, truncated_N), is_control_N, fold_N)
    auc, low, high = cross_validated_auc(score_N, is_control_N, fold_N, topic_N)
    of_controls, of_captions = _telltales(words, is_control_N)
    return Likeness(auc, low, high, **counts, of_controls=of_controls, of_captions=of_captions)


def cross_validated_auc(
    score_N: Floats, positive_N: npt.NDArray[np.bool_], fold_N: Ints, cluster_N: Ints, confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Compute the AUC within folds, and its interval from the influence of each cluster (LeDell et al., 2015).

    Only scores of one fold, which one classifier gave, are compared with each other. The variance is that of sums of
    influences over clusters (Obuchowski, 1997), because captions of one cluster are not independent.

    Args:
        score_N: Scores.
        positive_N: Which rows are positive.
        fold_N: Fold of each row.
        cluster_N: Cluster of each row, as a number.
        confidence: Level of the two-sided interval.

    Returns:
        (AUC, lower end, upper end).
    """
    wins_N, pairs_N = np.zeros(len(score_N)), np.zeros(len(score_N))
    for fold in np.unique(fold_N):
        positive, negative = (np.flatnonzero((fold_N == fold) & of) for of in (positive_N, ~positive_N))
        for own, other, sign in ((positive, negative, 1.0), (negative, positive, -1.0)):
            sorted_ = np.sort(sign * score_N[other])
            below, upto = (np.searchsorted(sorted_, sign * score_N[own], side) for side in ("left", "right"))
            wins_N[own], pairs_N[own] = (below + upto) / 2, len(other)
    pairs = pairs_N[positive_N].sum()
    auc = float(wins_N[positive_N].sum() / pairs)
    influence_N = (wins_N - auc * pairs_N) / pairs
    _, cluster_N = np.unique(cluster_N, return_inverse=True)
    sum_G = np.bincount(cluster_N, influence_N)
    clusters = len(sum_G)
    error = float(np.sqrt(clusters / max(1, clusters - 1) * (sum_G**2).sum()))
    reach = float(stats.norm.isf((1 - confidence) / 2)) * error
    return auc, max(0.0, auc - reach), min(1.0, auc + reach)


def _topics(groups: Sequence[str], words: Sequence[set[str]]) -> Ints:
    """Number the topics: captions with the same group or the same rarest word, and those that these connect."""
    frequency = Counter(word for found in words for word in found)
    shared = ([word for word in found if frequency[word] > 1] for found in words)
    rarest = [min(found, key=lambda word: (frequency[word], word), default=None) for found in shared]
    number: dict[tuple[str, str], int] = {}
    pairs = []
    for row, (group, word) in enumerate(zip(groups, rarest, strict=True)):
        keys = [("group", group)] + ([("word", word)] if word is not None else [])
        pairs += [(row, len(groups) + number.setdefault(key, len(number))) for key in keys]
    members, roots = components(np.array(pairs, np.int64).reshape(-1, 2))
    return roots[members < len(groups)]


def _folds(topic_N: Ints, texts: Sequence[str], seed: int) -> Ints:
    """Return the fold of each caption, by the hash of the first text of its topic."""
    first = {int(topic): texts[row] for row, topic in reversed(list(enumerate(topic_N)))}
    salt = seed.to_bytes(8, "little")
    fold_of = {
        topic: blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, salt=salt).digest()
        for topic, text in first.items()
    }
    return np.array([int.from_bytes(fold_of[int(topic)], "little") % FOLDS for topic in topic_N], np.int64)


def _features(texts: Sequence[str], truncated_N: npt.NDArray[np.bool_]) -> sparse.csr_array:
    """Compute tf-idf of common character n-grams, and lengths, kinds of characters and truncation: [N, K]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    shown = [text[:_LETTERS] for text in texts]
    letters = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(1, 4), min_df=_COMMON, sublinear_tf=True, lowercase=False
    )
    other_NK = np.array([_shape_of(text) for text in texts])
    other_NK = np.column_stack([other_NK, truncated_N.astype(np.float64)])
    spread_K = other_NK.std(axis=0)
    scaled_NK = (other_NK - other_NK.mean(axis=0)) / np.where(spread_K > 0, spread_K, 1)
    # The rows of the n-grams have length one; these have a similar one.
    return sparse.csr_array(sparse.hstack([letters.fit_transform(shown), scaled_NK / np.sqrt(scaled_NK.shape[1])]))


def _shape_of(text: str) -> list[float]:
    """Return what describes the form of a text: its length and the share of each kind of character."""
    kinds = Counter(script_of(letter) for letter in text if letter.isalpha())
    letters = max(1, sum(kinds.values()))
    scripts = [kinds[script] / letters for script in ("LATIN", "CYRILLIC", "CJK", "ARABIC", "HIRAGANA", "HANGUL")]
    marks = [sum(map(is_kind, text)) / max(1, len(text)) for is_kind in (str.isupper, str.isdigit, str.isspace)]
    return [np.log1p(len(text)), np.log1p(len(text.split())), *marks, *scripts]


def script_of(letter: str) -> str:
    """Return the script of a letter, as its Unicode name begins: LATIN, CYRILLIC, CJK and so on."""
    return unicodedata.name(letter, "UNKNOWN").split(" ", 1)[0].split("-", 1)[0]


def _scores(features_NK: sparse.csr_array, is_control_N: npt.NDArray[np.bool_], fold_N: Ints) -> Floats:
    """Score each caption with a classifier that was trained on the other folds: [N]."""
    from sklearn.linear_model import LogisticRegression

    score_N = np.zeros(len(fold_N))
    for fold in np.unique(fold_N):
        mine = fold_N == fold
        if len(np.unique(is_control_N[~mine])) < 2:
            continue  # one topic holds a whole side; its scores stay equal
        classifier: Any = LogisticRegression(class_weight="balanced", max_iter=1000)
        classifier.fit(features_NK[~mine], is_control_N[~mine])
        score_N[mine] = classifier.decision_function(features_NK[mine])
    return score_N


def _telltales(
    words: Sequence[set[str]], is_control_N: npt.NDArray[np.bool_]
) -> tuple[tuple[Telltale, ...], tuple[Telltale, ...]]:
    """Return the words whose shares differ most, by the z of two proportions: (of controls, of captions)."""
    controls, captions = int(is_control_N.sum()), int((~is_control_N).sum())
    mine, theirs = (
        Counter(word for row in np.flatnonzero(rows).tolist() for word in words[row])
        for rows in (is_control_N, ~is_control_N)
    )
    ranked = []
    for word in mine.keys() | theirs.keys():
        pooled = (mine[word] + theirs[word]) / (controls + captions)
        share, other = mine[word] / controls, theirs[word] / captions
        spread = np.sqrt(pooled * (1 - pooled) * (1 / controls + 1 / captions))
        if spread > 0 and abs(share - other) >= MIN_Z * spread:
            ranked.append((float((share - other) / spread), Telltale(word, round(share, 4), round(other, 4))))
    ranked.sort(key=lambda item: (-abs(item[0]), item[1].word))
    of_controls = tuple(telltale for z, telltale in ranked if z > 0)[:TELLTALES]
    return of_controls, tuple(telltale for z, telltale in ranked if z < 0)[:TELLTALES]
