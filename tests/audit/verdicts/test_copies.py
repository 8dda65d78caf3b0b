import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from audit import schema
from audit.verdicts.copies import copied_images, links
from audit.verdicts.regions import region_png, thumbnail
from audit.verdicts.thresholds import Threshold

THRESHOLDS = {"verbatim": Threshold(0.8, "controls"), "region": Threshold(0.6, "controls")}
TOP = np.zeros((8, 8), bool)
TOP[:5] = True


def match(image: str, similarity: float, seed: int = 1, **other: object) -> dict[str, object]:
    found = {"caption_id": "c", "purpose": "discover", "seed": seed, "embedder": "sscd", "image_id": image}
    return found | {"similarity": similarity} | other


def copied(*matches: dict[str, object]) -> list[dict]:
    return copied_images(pa.Table.from_pylist(list(matches), schema.MATCHES), "sscd", THRESHOLDS).to_pylist()


def test_an_image_is_copied_once_by_its_best_generation() -> None:
    found = copied(
        match("a", 0.85, seed=1, pixel_agreement=0.9),
        match("a", 0.95, seed=2, pixel_agreement=0.5),
        match("a", 0.9, seed=3, pixel_agreement=0.9),
        match("b", 0.1, seed=1, region_similarity=0.7, region_agreement=0.8),
        match("c", 0.79, seed=1, region_similarity=0.59, region_agreement=1.0),
    )
    assert [(row["image_id"], row["copy_type"], row["seed"]) for row in found] == [
        ("a", "verbatim", 3),
        ("b", "partial", 1),
    ]


@given(st.floats(-1, 0.799), st.floats(0.6, 1), st.one_of(st.none(), st.floats(0, 0.799)))
def test_a_region_that_does_not_agree_pixel_by_pixel_is_no_copy(
    similarity: float, region_similarity: float, agreement: float | None
) -> None:
    known = {"region_similarity": region_similarity, "pixel_agreement": 0.5}
    assert copied(match("a", similarity, region_agreement=agreement, **known)) == []
    assert len(copied(match("a", similarity, region_agreement=0.8, **known))) == 1


def test_only_discovered_matches_of_the_deciding_embedder_count() -> None:
    assert (
        copied(match("a", 0.9, purpose="fresh"), match("a", 0.9, purpose="control"), match("a", 0.9, embedder="x"))
        == []
    )


def test_images_are_linked_by_what_was_copied_of_one_of_them() -> None:
    def picture(above: int, below: int) -> Image.Image:
        cells = [np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8) for seed in (above, below)]
        fine = TOP.repeat(2, 0).repeat(2, 1)[..., None]
        return Image.fromarray(np.where(fine, *cells)).resize((64, 64), Image.Resampling.NEAREST)

    pictures = {"a": picture(1, 2), "b": picture(1, 3), "c": picture(4, 2)}
    found = pa.Table.from_pylist(
        [
            {"caption_id": "1", "image_id": "a", "copy_type": "partial", "region": region_png(TOP)},
            {"caption_id": "2", "image_id": "b", "copy_type": "verbatim", "region": region_png(~TOP)},
            {"caption_id": "3", "image_id": "c", "copy_type": "verbatim", "region": region_png(~TOP)},
        ],
        schema.COPIED_IMAGES,
    )
    linked = links(found, {id_: thumbnail(image) for id_, image in pictures.items()})
    assert linked.to_pylist() == [{"image_id": "a", "other_id": "b"}]
    assert links(found.slice(0, 0), {}).to_pylist() == []
