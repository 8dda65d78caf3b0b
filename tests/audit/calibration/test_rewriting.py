from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from audit.calibration.likeness import compare
from audit.calibration.rewriting import PROPOSALS, rewrite
from audit.duplicates.captions import caption_groups
from audit.errors import AuditError
from pipelines.demo.demo import bundle
from pipelines.reading.dataset import grouped


@pytest.fixture(scope="module")
def captions() -> list[str]:
    return sorted(set(pq.read_table(bundle() / "captions.parquet")["caption"].to_pylist()))[::5]


def test_proposals_are_new_and_like_the_captions(captions: list[str]) -> None:
    table = rewrite(captions, 200)
    proposed = table["caption"].to_pylist()
    assert table.schema == PROPOSALS
    assert len(proposed) == len(set(proposed)) == 200
    groups = caption_groups([*captions, *proposed])
    assert not set(groups[: len(captions)]) & set(groups[len(captions) :])
    assert set(table["source"].to_pylist()) <= set(captions)
    assert not compare(grouped(proposed), grouped(captions)).unlike


def test_words_come_from_the_same_place_of_the_template_and_the_rest_stays() -> None:
    colours = ("amber", "beige", "coral", "denim", "ebony", "frost", "green", "hazel")
    animals = ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen")
    captions = [f"a {colour} hat for a {animal}" for colour, animal in zip(colours, animals, strict=True)]
    for row in rewrite(captions * 2, 5).to_pylist():
        article, colour, hat, for_, _, animal = row["caption"].split()
        assert (article, hat, for_, row["method"]) == ("a", "hat", "for", "template")
        assert colour in colours
        assert animal in animals
        assert row["source"].split()[1] != colour


def test_the_seed_decides(captions: list[str]) -> None:
    assert rewrite(captions, 50, 1).equals(rewrite(captions[::-1], 50, 1))
    assert not rewrite(captions, 50, 1).equals(rewrite(captions, 50, 2))


def test_captions_without_subjects_cannot_be_rewritten() -> None:
    with pytest.raises(AuditError, match="no caption can be rewritten"):
        rewrite(["1234", "5678"], 5)
