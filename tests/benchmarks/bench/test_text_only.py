"""The text-only guess finds what the captions give away, and nothing where they give nothing away."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from audit.statistics.detection_rates import auroc
from benchmarks.planted.bench.text_only import guess

N = 400


def test_a_feature_that_gives_planted_captions_away_is_found() -> None:
    rng = np.random.default_rng(0)
    planted_N = np.arange(N) < 40
    features_NF = rng.standard_normal((N, 10))
    features_NF[planted_N, 3] += 3
    score_N = guess(csr_matrix(features_NF), planted_N, [str(i) for i in range(N)])
    assert auroc(score_N[planted_N], score_N[~planted_N]) > 0.95


def test_a_cluster_cannot_vouch_for_its_own_captions() -> None:
    # Features name the cluster and nothing else: a split within clusters would recognise them perfectly.
    rng = np.random.default_rng(0)
    cluster_N = np.arange(N) // 4
    features_NF = rng.standard_normal((N // 4, 50))[cluster_N]
    planted_N = np.isin(cluster_N, rng.permutation(N // 4)[:20])
    score_N = guess(csr_matrix(features_NF), planted_N, [str(c) for c in cluster_N])
    assert 0.3 < auroc(score_N[planted_N], score_N[~planted_N]) < 0.7
