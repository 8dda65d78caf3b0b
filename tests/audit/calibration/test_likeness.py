from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from audit.calibration.likeness import LIMIT, MIN_TOPICS, compare, cross_validated_auc
from audit.duplicates.captions import caption_groups
from pipelines.demo.demo import bundle
from tests.support.newspaper import newspaper


def table_of(captions: list[str]) -> pa.Table:
    groups = caption_groups(captions)
    return pa.table({"caption": captions, "caption_group": groups, "truncated": [False] * len(captions)})


@pytest.fixture(scope="module")
def shipped() -> list[str]:
    return (bundle() / "calibration.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def data() -> list[str]:
    captions = pq.read_table(bundle() / "captions.parquet", columns=["caption"])["caption"].to_pylist()
    return random.Random(0).sample(sorted(set(captions)), 1000)


def test_shipped_controls_are_accepted(shipped: list[str], data: list[str]) -> None:
    found = compare(table_of(random.Random(0).sample(shipped, 500)), table_of(data))
    assert not found.unlike
    assert found.high < LIMIT


def test_newspaper_like_controls_are_refused(data: list[str]) -> None:
    found = compare(table_of(newspaper(200)), table_of(data[:500]))
    assert found.unlike
    assert found.auc > 0.999
    assert "officials" in [telltale.word for telltale in found.of_controls]


def test_short_controls_are_refused(shipped: list[str], data: list[str]) -> None:
    found = compare(table_of([text for text in shipped if text.endswith((", noto", ", fluent"))]), table_of(data))
    assert found.unlike


def test_captions_of_one_source_are_alike(data: list[str]) -> None:
    held_out = data[::4]
    found = compare(table_of(held_out), table_of([text for text in data if text not in set(held_out)]))
    assert found.low <= 0.55
    assert not found.unlike


def test_the_same_topics_in_other_numbers_do_not_tell_the_sides_apart(shipped: list[str]) -> None:
    """Unless folds keep topics together, a classifier knows the sides by their topics."""
    topics = sorted({text.removesuffix(", noto") for text in shipped if text.endswith(", noto")})
    rng = random.Random(0)
    rng.shuffle(topics)
    forms = ["a picture of {}", "{} on white paper", "sticker with {}", "{}, drawn in pencil", "my best {}"]
    captions = [[form.format(topic) for topic in half for form in forms] for half in (topics[::2], topics[1::2])]
    assert not compare(*map(table_of, captions)).unlike


def test_the_result_depends_on_captions_and_seed_alone(data: list[str]) -> None:
    controls, captions = table_of(newspaper(200)[:100] + data[:300]), table_of(data[300:900])
    shuffled = captions.take(pa.array(np.random.default_rng(0).permutation(len(captions))))
    assert compare(controls, captions, 3) == compare(controls, shuffled, 3)


def test_too_few_topics_give_no_answer(data: list[str]) -> None:
    found = compare(table_of(newspaper(MIN_TOPICS - 1)), table_of(data[:200]))
    assert found.auc is None
    assert not found.unlike


def test_the_language_and_the_length_count() -> None:
    rng = random.Random(0)
    plain = ["".join(rng.choices("abcdefg", k=6)) + " " + "".join(rng.choices("abcdefg", k=5)) for _ in range(300)]
    moved = [text.translate(str.maketrans("abcdefg", "абцдефг")) for text in plain[:100]]
    assert compare(table_of(moved), table_of(plain[100:])).auc > 0.99
    assert compare(table_of([" ".join([text] * 6) for text in plain[:100]]), table_of(plain[100:])).auc > 0.95


def test_truncation_counts(data: list[str]) -> None:
    controls, captions = table_of(data[:300]), table_of(data[300:900])
    truncated = controls.set_column(2, "truncated", pa.array([True] * 300))
    assert compare(truncated, captions).auc > compare(controls, captions).auc + 0.2


def test_the_auc_is_that_of_scikit_learn_within_folds() -> None:
    rng = np.random.default_rng(0)
    score, positive = rng.normal(size=200).round(1), rng.random(200) < 0.4
    auc, low, high = cross_validated_auc(score, positive, np.zeros(200, np.int64), np.arange(200))
    assert auc == pytest.approx(roc_auc_score(positive, score), abs=1e-12)
    assert low < auc < high


def test_the_interval_covers_at_its_level() -> None:
    """Two normal distributions one apart have the AUC Phi(1 / sqrt(2)). Each cluster has four equal scores."""
    truth, covered, rng, draws = 0.7602499, 0, np.random.default_rng(0), 1000
    positive, cluster = np.repeat(np.arange(120) < 60, 4), np.repeat(np.arange(120), 4)
    fold = np.repeat(np.arange(120) % 3, 4)
    for _ in range(draws):
        score = np.repeat(rng.normal(size=120), 4) + positive
        _, low, high = cross_validated_auc(score, positive, fold, cluster)
        covered += low <= truth <= high
    assert covered / draws > 0.95 - 0.02
