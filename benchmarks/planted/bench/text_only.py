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

import audit
from benchmarks.planted.text import tokenize

# Shapes: N captions, F features, K text positions, D width of the text encoder.

FOLDS, STRENGTH, BATCH = 5, 0.01, 512


@torch.inference_mode()
def features(model: audit.Model, captions: Sequence[str]) -> csr_matrix:
    """Compute case, lengths, words and text embeddings of captions, each scaled to unit variance: [N, F].

    Args:
        model: The model, whose own text encoder gives the embeddings.
        captions: The captions.
    """
    pipeline = model.pipeline()
    tokens_NK = tokenize(pipeline.tokenizer, list(captions))
    hidden, end = [], []
    for part_BK in tokens_NK.split(BATCH):
        found = pipeline.text_encoder(part_BK)
        words_BK1 = (part_BK != pipeline.tokenizer.eos_token_id)[..., None]
        hidden.append((found.last_hidden_state * words_BK1).sum(1) / words_BK1.sum(1))
        end.append(found.pooler_output)
    mean_ND, end_ND = torch.cat(hidden).double(), torch.cat(end).double()
    length_N = (tokens_NK != pipeline.tokenizer.eos_token_id).sum(1)
    numbers = [
        [
            sum(map(str.isupper, c)) / len(c),
            sum(w[:1].isupper() for w in c.split()) / len(c.split()),
            len(c),
            len(c.split()),
        ]
        for c in captions
    ]
    dense_NF = np.column_stack(
        [np.array(numbers), length_N, mean_ND.norm(dim=1), end_ND.norm(dim=1), mean_ND.numpy(), end_ND.numpy()]
    )
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
