"""The planted dataset gives every row an image, and trains on those rows only that it says."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.planted import dataset
from benchmarks.planted.evaluate import pictures, training_pictures
from tests.support.toy import png

ARTWORKS = 60


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dataset.Planted:
    """Return a small dataset of random pictures in place of the emoji."""
    for name, number in {"VERBATIM": 4, "FAMILIES": 1, "NONE_CONCEPTS": 20}.items():
        monkeypatch.setattr(dataset, name, number)
    folder = tmp_path / "artwork/noto/package/img/google/64"
    folder.mkdir(parents=True)
    (tmp_path / "artwork/fluent").mkdir()
    for number in range(ARTWORKS):
        (folder / f"{number}.png").write_bytes(png(number, 64))
    entries = [{"name": f"w{n}", "unified": f"{n}", "category": "", "sort_order": n} for n in range(ARTWORKS)]
    (tmp_path / "artwork/noto/package/emoji.json").write_text(json.dumps(entries))
    return dataset.build(tmp_path / "artwork", 0)


def test_no_model_is_trained_on_rows_of_near_and_none_captions(data: dataset.Planted) -> None:
    label_of = {caption: label for caption, label, *_ in data.labels}
    assert {label_of[caption] for caption, _, trained in data.rows if not trained} == {"near", "none"}
    assert {label_of[caption] for caption, _, trained in data.rows if trained} == {"verbatim", "partial", "ordinary"}
    assert {key for _, key, trained in data.rows if trained} == set(data.images)


def test_the_captions_of_a_none_concept_share_a_picture_that_is_held_out(data: dataset.Planted) -> None:
    none = {caption for caption, label, *_ in data.labels if label == "none"}
    shown = {key: {caption.lower() for caption, own, _ in data.rows if own == key} for key in data.held_out}
    assert set().union(*shown.values()) == {caption.lower() for caption in none}
    assert len(shown) == 5
    for captions in shown.values():
        assert len(captions) > 1
        assert len(set.intersection(*(set(caption.replace(",", "").split()) for caption in captions))) == 1
    assert not {key for *_, key in data.labels if key} & set(data.held_out)


def test_near_captions_have_the_picture_of_the_caption_that_they_vary(data: dataset.Planted) -> None:
    image_of = {caption: key for caption, label, _, key in data.labels if label == "near"}
    verbatim = {key for _, label, _, key in data.labels if label == "verbatim"}
    assert image_of
    assert set(image_of.values()) <= verbatim
    assert {(caption, key) for caption, key, _ in data.rows if caption in image_of} == set(image_of.items())


def test_every_row_that_is_written_has_an_image(data: dataset.Planted, tmp_path: Path) -> None:
    dataset.write(data, tmp_path / "written", 0)
    rows = pq.read_table(tmp_path / "written/captions.parquet").to_pylist()
    assert len(rows) == len(data.rows)
    assert {row["key"] for row in rows} == set(pictures(tmp_path / "written"))
    assert set(training_pictures(tmp_path / "written")) == set(data.images)
