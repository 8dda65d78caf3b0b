"""PlantedBench plants and holds back concepts of one pool, at random, and gives every caption the same register."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.planted.bench import data
from tests.support.toy import png

CONCEPTS = 40
COUNTS = data.Counts(
    per_dose=1,
    many_captions=1,
    many_images=1,
    families=1,
    edited=1,
    never_concepts=6,
    never_each=5,
    control_each=3,
    near=3,
    odd=2,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the data of a small benchmark, with random pictures in place of the emoji."""
    root = tmp_path_factory.mktemp("bench")
    homes = root / "artwork/noto/package/img/google/64", root / "artwork/fluent/package/assets"
    for home in homes:
        home.mkdir(parents=True)
    for number in range(CONCEPTS):
        (homes[0] / f"{number}.png").write_bytes(png(2 * number, 64))
        (homes[1] / f"{number}.webp").write_bytes(png(2 * number + 1, 64))
    entries = [{"name": f"w{n}", "unified": f"{n}", "category": "", "sort_order": n} for n in range(CONCEPTS)]
    (root / "artwork/noto/package/emoji.json").write_text(json.dumps(entries))
    data.build(root / "artwork", 0, COUNTS).write(root / "data")
    return root / "data"


def rows(folder: Path, name: str) -> list[dict]:
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def test_a_dose_is_the_weight_with_which_an_image_is_drawn(folder: Path) -> None:
    weight: Counter[str] = Counter()
    for row in rows(folder, "rows"):
        weight[row["image"]] += row["weight"]
    for row in rows(folder, "captions"):
        if row["kind"] in ("dose", "ordinary"):
            assert weight[row["images"][0]] == row["dose"]
    assert sorted(row["dose"] for row in rows(folder, "captions") if row["kind"] == "dose") == list(data.DOSES)


def test_captions_never_trained_on_have_no_row_and_share_no_concept_with_planted_ones(folder: Path) -> None:
    trained = {row["caption"] for row in rows(folder, "rows")}
    of_kind: dict[str, set[str]] = {}
    for row in rows(folder, "captions"):
        of_kind.setdefault(row["kind"], set()).add(row["cluster"])
        assert (row["caption"] in trained) == (row["kind"] not in ("never", "control", "near", "odd"))
    assert not of_kind["never"] & (of_kind["dose"] | of_kind["control"])
    assert not of_kind["control"] & of_kind["dose"]


def test_every_concept_has_another_picture_that_is_trained_once(folder: Path) -> None:
    ordinary = {row["cluster"] for row in rows(folder, "captions") if row["kind"] == "ordinary"}
    for row in rows(folder, "captions"):
        if row["kind"] in ("dose", "never", "control"):
            assert row["cluster"] in ordinary


def test_no_caption_stands_twice(folder: Path) -> None:
    captions = [row["caption"] for row in rows(folder, "captions")]
    assert len(captions) == len(set(captions))


def test_all_rows_have_an_image_and_all_captions_with_images_know_them(folder: Path) -> None:
    images = {row["key"] for row in rows(folder, "images")}
    known = {row["caption"]: set(row["images"]) for row in rows(folder, "captions")}
    assert {row["image"] for row in rows(folder, "rows")} == images
    for row in rows(folder, "rows"):
        assert row["image"] in known[row["caption"]]


def test_edited_copies_and_families_count_as_one(folder: Path) -> None:
    captions = rows(folder, "captions")
    assert [len(row["images"]) for row in captions if row["kind"] == "edited"] == [data.EDITS]
    assert [len(row["images"]) for row in captions if row["kind"] == "many_images"] == [data.IMAGES_EACH]
    families = Counter(row["cluster"] for row in captions if row["kind"] == "template")
    assert families == {"family 0": data.FAMILY_SIZE}


def test_data_of_fewer_concepts_has_no_trace_of_the_others(folder: Path) -> None:
    none = dict.fromkeys(("many_captions", "many_images", "families", "edited", "near", "odd"), 0)
    counts = data.Counts(per_dose=1, never_concepts=3, never_each=2, control_concepts=2, control_each=2, **none)
    captions = data.build(folder.parent / "artwork", 0, counts).captions
    found = Counter(row["kind"] for row in captions)
    assert found == {"ordinary": len(data.DOSES) + 5, "dose": len(data.DOSES), "never": 6, "control": 4}
    assert len({row["cluster"] for row in captions}) == len(data.DOSES) + 5
