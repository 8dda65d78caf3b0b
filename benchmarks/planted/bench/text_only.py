"""Guess from the captions alone, without any UNet, which of them were planted: what the words give away.

A benchmark on which this works measures its own captions and not memorization.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import audit
from audit.models.sd import HIDDEN

# Shapes: N captions, E values of an embedding, F features, K text positions, D width of the text encoder.

FOLDS, STRENGTH, BATCH = 5, 0.01, 512


@torch.inference_mode()
def embeddings(model: audit.Model, captions: Sequence[str]) -> npt.NDArray[np.float64]:
    """Embed captions with a model's own text encoders, and return lengths, norms and vectors: [N, E].

    Args:
        model: The model.
        captions: The captions.
    """
    # The mean over the words, the end of the caption and, where the model has one, the pooled vector.
    found: list[list[Tensor]] = []
    lengths = []
    for start in range(0, len(captions), BATCH):
        conditioning = model.encode(captions[start : start + BATCH])
        hidden_BKD, tokens = conditioning.tensors[HIDDEN], conditioning.tokens
        assert tokens is not None
        words_BK1 = (torch.arange(hidden_BKD.shape[1]) < tokens.end_B[:, None])[..., None]
        mean_BD = (hidden_BKD * words_BK1).sum(1) / words_BK1.sum(1).clamp(min=1)
        end_BD = hidden_BKD[torch.arange(len(tokens)), tokens.end_B]
        others = [v for v in conditioning.tensors.values() if v.ndim == 2 and v.is_floating_point()]
        found.append([mean_BD, end_BD, *others])
        lengths.append(tokens.end_B)
    vectors = [torch.cat(parts).double() for parts in zip(*found, strict=True)]
    norms = [vector_ND.norm(dim=1) for vector_ND in vectors]
    return np.column_stack([torch.cat(lengths), *norms, *vectors])


def features(captions: Sequence[str], embedding_NE: npt.NDArray[np.float64]) -> csr_matrix:
    """Return case, lengths, words and text embeddings of captions, each scaled to unit variance: [N, F].

    Args:
        captions: The captions.
        embedding_NE: What `embeddings` returned for them.
    """
    numbers = [
        [
            sum(map(str.isupper, c)) / len(c),
            sum(w[:1].isupper() for w in c.split()) / len(c.split()),
            len(c),
            len(c.split()),
        ]
        for c in captions
    ]
    dense_NF = np.column_stack([np.array(numbers), embedding_NE])
    words = TfidfVectorizer(token_pattern=r"\S+", lowercase=False).fit_transform(captions)
    lowered = TfidfVectorizer().fit_transform(captions)
    return hstack([StandardScaler().fit_transform(dense_NF), words, lowered], format="csr")


def guess(
    features_NF: csr_matrix, planted_N: npt.NDArray[np.bool_], clusters: Sequence[str]
) -> npt.NDArray[np.float64]:
    """Return the score that a classifier gives each caption when it has not seen its cluster.

    Args:
        features_NF: What `features` returned.
        planted_N: Which captions are planted.
        clusters: The cluster of each caption. Captions of a cluster are in the same of five folds.
    """
    score_N = np.zeros(len(planted_N))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(features_NF, planted_N, clusters):
        classifier = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=300)
        classifier.fit(features_NF[train], planted_N[train])
        score_N[test] = classifier.decision_function(features_NF[test])
    return score_N
