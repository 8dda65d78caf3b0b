"""Normalise captions and find near-duplicates with MinHash.

Two captions are near-identical if the Jaccard similarity of their sets of shingles is at least NEAR. A shingle is four
consecutive letters after case folding, removing punctuation and collapsing whitespace. MinHash (Broder 1997) finds
candidates, which have a band of their signatures in common. Each candidate pair is then compared exactly, so that
captions of one template are not joined by chains of chance collisions.
"""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from audit.duplicates.components import components

# Shapes: N captions, B bands, R minima per band, W shingles of all captions together, M keys, P pairs.

SHINGLE = 4
NEAR = 0.9
BANDS, MINIMA = 10, 10
KEY_BITS = 62
# Each caption is compared with this many of those that follow it, in text order, among captions that share a band.
WINDOW = 16
_CHUNK = 1 << 10
_END = "\U0010ffff" * SHINGLE

Words = npt.NDArray[np.uint64]


def caption_id(caption: str) -> str:
    """Return the id of a distinct text: 32 hex digits of blake2b over its UTF-8 bytes."""
    return hashlib.blake2b(caption.encode("utf-8"), digest_size=16).hexdigest()


def draws(caption_ids: Sequence[str], seed: int) -> npt.NDArray[np.float64]:
    """Draw a uniform number from [0, 1) for each caption: [N]. It depends on `caption_id` and seed alone."""
    id_N = np.array([int(id_[:16], 16) for id_ in caption_ids], np.uint64)
    mixed_N = mixed(id_N ^ mixed(np.array([seed], np.uint64)))
    return (mixed_N >> np.uint64(11)).astype(np.float64) / (1 << 53)


def caption_groups(captions: Sequence[str]) -> list[str]:
    """Return the group of each caption: the smallest `caption_id` among those that near-identity connects it with."""
    ids = [caption_id(caption) for caption in captions]
    order_N = np.argsort(np.array(ids, dtype=object), kind="stable")
    ordered = [captions[at] for at in order_N]
    keys_NB = band_keys(ordered)
    members, roots = components(near_pairs(keys_NB.ravel(), np.repeat(np.arange(len(ids)), BANDS), ordered))
    root_N = np.arange(len(ids))
    root_N[members] = roots
    group_N = np.empty(len(ids), dtype=object)
    group_N[order_N] = np.array(ids, dtype=object)[order_N][root_N]
    return group_N.tolist()


def band_keys(captions: Sequence[str]) -> Words:
    """Hash each band of each caption's MinHash signature to one number below 2^KEY_BITS: [N, B]."""
    parts = [_band_keys(captions[at : at + _CHUNK]) for at in range(0, len(captions), _CHUNK)]
    return np.concatenate([np.zeros((0, BANDS), np.uint64), *parts])


def near_pairs(
    key_M: npt.NDArray[Any], caption_M: npt.NDArray[np.int64], captions: Sequence[str]
) -> npt.NDArray[np.int64]:
    """Find the pairs of captions that share a key and are near-identical.

    Args:
        key_M: Keys of all captions.
        caption_M: Index of the caption that each key belongs to.
        captions: The captions.

    Returns:
        Pairs [P, 2] of indices into `captions`, the smaller one first.
    """
    folded = [_folded(caption) for caption in captions]
    # Among many captions with one key, similar ones must be neighbours, whatever order the captions came in.
    rank_N = np.empty(len(folded), np.int64)
    rank_N[sorted(range(len(folded)), key=folded.__getitem__)] = np.arange(len(folded))
    order_M = np.lexsort((rank_N[caption_M], key_M))
    key_M, caption_M = key_M[order_M], caption_M[order_M]
    found = [np.zeros((0, 2), np.int64)]
    for distance in range(1, WINDOW + 1):
        at_P = np.flatnonzero(key_M[distance:] == key_M[:-distance])
        found.append(np.stack([caption_M[at_P], caption_M[at_P + distance]], axis=1))
    pairs_P2 = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    return pairs_P2[_near(folded, pairs_P2)]


def near_identical(captions: Sequence[str], pairs_P2: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Tell whether the two captions of each pair are near-identical: [P] bool."""
    return _near([_folded(caption) for caption in captions], pairs_P2)


def overlap(caption: str, others: Sequence[str]) -> list[float]:
    """Compute the Jaccard similarity of a caption's shingles with those of each other caption."""
    shingles, *sets = [set(_shingles([_folded(text)])[0].tolist()) for text in (caption, *others)]
    return [len(shingles & other) / len(shingles | other) for other in sets]


def mixed(values: Words) -> Words:
    """Scramble each number with the finalizer of SplitMix64 (Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _band_keys(captions: Sequence[str]) -> Words:
    shingle_W, start_N = _shingles([_folded(caption) for caption in captions])
    half_W = (shingle_W >> np.uint64(32)).astype(np.uint32)
    draws = mixed(np.arange(2 * BANDS * MINIMA, dtype=np.uint64)).astype(np.uint32)
    keys = []
    for band in range(BANDS):
        key_N = np.full(len(captions), band, np.uint64)
        for at in range(band * MINIMA, (band + 1) * MINIMA):
            hash_W = half_W * (draws[2 * at] | np.uint32(1)) + draws[2 * at + 1]
            key_N = mixed(key_N ^ np.minimum.reduceat(hash_W, start_N))
        keys.append(key_N >> np.uint64(64 - KEY_BITS))
    return np.stack(keys, axis=1)


def _near(folded: Sequence[str], pairs_P2: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    if not len(pairs_P2):
        return np.zeros(0, bool)
    used, inverse = np.unique(pairs_P2, return_inverse=True)
    shingle_W, start_N = _shingles([folded[at] for at in used])
    of_W = np.repeat(np.arange(len(used)), np.diff([*start_N, len(shingle_W)]))
    _, column_W = np.unique(shingle_W, return_inverse=True)
    sets = sparse.csr_array((np.ones(len(of_W), np.int32), (of_W, column_W)))
    sets.data[:] = 1  # a shingle that occurs twice counts once
    size_N, found = np.diff(sets.indptr), []
    for at in range(0, len(pairs_P2), _CHUNK):
        one, other = inverse.reshape(pairs_P2.shape)[at : at + _CHUNK].T
        shared = sets[one].multiply(sets[other]).sum(axis=1)
        found.append(shared >= NEAR * (size_N[one] + size_N[other] - shared))
    return np.concatenate(found)


def _shingles(folded: Sequence[str]) -> tuple[Words, npt.NDArray[np.int64]]:
    """Hash the shingles of all texts: (hashes [W], index of each text's first shingle [N]).

    The last shingles of a text extend into its end marker.
    """
    letters = np.frombuffer((_END.join(folded) + _END).encode("utf-32-le", "surrogatepass"), np.uint32)
    length_N = np.fromiter(map(len, folded), np.int64, len(folded))
    start_N = np.cumsum(length_N) - length_N
    at_W = np.arange(length_N.sum()) + np.repeat(SHINGLE * np.arange(len(folded)), length_N)
    hash_W = np.zeros(len(at_W), np.uint64)
    for letter in range(SHINGLE):
        hash_W = mixed(hash_W ^ letters[at_W + letter])
    return hash_W, start_N


def _folded(caption: str) -> str:
    # The leading space marks the start of a word, as the end marker does its end: `ram` is not close to `tram`.
    return " " + " ".join(caption.casefold().translate(_without_punctuation()).split())


@cache
def _without_punctuation() -> dict[int, None]:
    codes = range(sys.maxunicode + 1)
    return dict.fromkeys(code for code in codes if unicodedata.category(chr(code)).startswith("P"))
