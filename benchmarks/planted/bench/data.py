"""Build the data of PlantedBench: images drawn 1 to 80 times as often as others, and captions never trained on.

All concepts come from one pool and are assigned at random. Of every concept, planted or never trained on, one picture
of another look is trained once, so that the model knows the words of all captions.
"""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from audit.duplicates.images import edited
from benchmarks.planted import captions as text
from benchmarks.planted.artwork import Artwork, catalogue, distinct, draw, fetch
from benchmarks.planted.bench import wording
from benchmarks.planted.dataset import PATTERNS, template

DOSES = (1, 2, 5, 10, 20, 40, 80)
CAPTIONS_EACH, IMAGES_EACH, FAMILY_SIZE, EDITS = 8, 4, 12, 8
ISOLATED_RMS = 0.16  # least distance of a pool picture to any other, so that pixels can identify it
LARGEST_DOSE = 40  # of an image, family or caption outside the dose series

CAPTIONS = pa.schema(
    [
        pa.field("caption", pa.string(), nullable=False),
        # dose, many_captions, many_images, template, edited: planted. ordinary: trained once. near, odd, never: never
        # trained. control: never trained, and only used to calibrate.
        pa.field("kind", pa.string(), nullable=False),
        pa.field("dose", pa.int32(), nullable=False),  # how often its image is drawn relative to ordinary ones
        pa.field("cluster", pa.string(), nullable=False),  # captions that stand or fall together: a concept or a family
        pa.field("style", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.string()), nullable=False),  # keys of the images that it may reproduce
    ]
)
ROWS = pa.schema([("caption", pa.string()), ("image", pa.string()), ("weight", pa.int32())])
IMAGES = pa.schema([("key", pa.string()), ("png", pa.binary())])


@dataclass(frozen=True)
class Counts:
    """Say how many captions and concepts of each kind the data has.

    Attributes:
        per_dose: Captions of each dose.
        many_captions: Images under many captions.
        many_images: Captions with many images.
        families: Template families.
        edited: Captions with edited copies.
        never_concepts: Concepts never trained on.
        never_each: Captions of each of them.
        control_concepts: Concepts of control captions; by default all that are left.
        control_each: Captions of each of them.
        near: Variations of captions of the three largest doses.
        odd: Odd captions of each of four kinds.
    """

    per_dose: int = 42
    many_captions: int = 12
    many_images: int = 8
    families: int = 6
    edited: int = 12
    never_concepts: int = 225
    never_each: int = 23
    control_concepts: int | None = None
    control_each: int = 10
    near: int = 120
    odd: int = 40

    @property
    def concepts(self) -> int | None:
        """The number of concepts, None for all that there are."""
        if self.control_concepts is None:
            return None
        planted = len(DOSES) * self.per_dose + self.many_captions + IMAGES_EACH * self.many_images
        return planted + 2 * self.families + self.edited + self.never_concepts + self.control_concepts


FULL = Counts()
# The dose series alone: a network learns it in a third of the steps.
SMALL = Counts(
    per_dose=20,
    many_captions=0,
    many_images=0,
    families=0,
    edited=0,
    near=0,
    odd=0,
    never_concepts=100,
    never_each=15,
    control_concepts=100,
)


@dataclass
class Bench:
    """Hold the data of one model while it is built: rows of CAPTIONS, rows of ROWS, and images by key."""

    captions: list[dict[str, object]] = field(default_factory=list)
    rows: list[dict[str, object]] = field(default_factory=list)
    images: dict[str, Image.Image] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def image(self, picture: Image.Image) -> str:
        """Add an image and return its key."""
        key = f"{len(self.images):05d}"
        self.images[key] = picture
        return key

    def caption(
        self, caption: str, kind: str, cluster: str, style: str, *, dose: int = 0, images: tuple[str, ...] = ()
    ) -> None:
        """Add a caption."""
        self.captions.append(
            {"caption": caption, "kind": kind, "dose": dose, "cluster": cluster, "style": style, "images": list(images)}
        )

    def train(self, caption: str, image: str, weight: int) -> None:
        """Add a row that is drawn in training in proportion to `weight`."""
        self.rows.append({"caption": caption, "image": image, "weight": weight})

    def write(self, folder: Path) -> None:
        """Write `captions.parquet`, `rows.parquet` and `images.parquet`."""
        folder.mkdir(parents=True, exist_ok=True)
        images = [{"key": key, "png": png(picture)} for key, picture in self.images.items()]
        for name, rows, schema in (
            ("captions", self.captions, CAPTIONS),
            ("rows", self.rows, ROWS),
            ("images", images, IMAGES),
        ):
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / f"{name}.parquet", compression="zstd")


def build(artwork: Path, seed: int, counts: Counts = FULL) -> Bench:
    """Build the data of one model. The same seed gives the same data.

    Args:
        artwork: The folder of the emoji packages; they are fetched if they are not there.
        seed: The seed.
        counts: How much of it.
    """
    fetch(artwork)
    rng = np.random.default_rng(seed)
    items, siblings = pool(*distinct(catalogue(artwork)), rng)
    items = items[: counts.concepts]
    concepts = {item.concept for item in items}
    bench = Bench()
    for sibling in siblings:
        if sibling.concept in concepts:
            _add(bench, sibling, "ordinary", 1, rng)
    spare = iter(items)
    for dose in DOSES:
        for _ in range(counts.per_dose):
            _add(bench, next(spare), "dose", dose, rng)
    for _ in range(counts.many_captions):
        _many_captions(bench, next(spare), rng)
    for _ in range(counts.many_images):
        _many_images(bench, [next(spare) for _ in range(IMAGES_EACH)], rng)
    for number in range(counts.families):
        _family(bench, number, [next(spare), next(spare)], rng)
    for _ in range(counts.edited):
        _edited(bench, next(spare), rng)
    _near(bench, items, counts.near, rng)
    never = [next(spare) for _ in range(counts.never_concepts)]
    held_back = (("never", never, counts.never_each), ("control", list(spare), counts.control_each))
    for kind, items_of_kind, each in held_back:
        for item in items_of_kind:
            for _ in range(each):
                caption, style = _caption(bench, item, rng)
                bench.caption(caption, kind, _cluster(item), style)
    _odd(bench, never, counts.odd, rng)
    return bench


def pool(
    artworks: list[Artwork], isolation: np.ndarray, rng: np.random.Generator
) -> tuple[list[Artwork], list[Artwork]]:
    """Draw one picture of each concept that both vendors have drawn, in random order.

    Args:
        artworks: Pictures without look-alikes.
        isolation: Distance of each to the nearest other one.
        rng: The random generator.

    Returns:
        The drawn pictures, and the other pictures of their concepts.
    """
    of_concept: dict[frozenset[str], list[int]] = defaultdict(list)
    for i, artwork in enumerate(artworks):
        if not artwork.skin and "flag" not in artwork.concept:
            of_concept[artwork.concept].append(i)
    items, siblings = [], []
    for pictures in of_concept.values():
        isolated = [i for i in pictures if isolation[i] >= ISOLATED_RMS]
        if isolated and len({artworks[i].vendor for i in pictures}) == len(text.LOOKS):
            chosen = int(rng.choice(isolated))
            items.append(artworks[chosen])
            siblings += [artworks[i] for i in pictures if artworks[i].vendor != artworks[chosen].vendor]
    return [items[i] for i in rng.permutation(len(items))], siblings


def _cluster(artwork: Artwork) -> str:
    return " ".join(sorted(artwork.concept))


def _caption(bench: Bench, artwork: Artwork, rng: np.random.Generator) -> tuple[str, str]:
    style = str(rng.choice(text.STYLES))  # drawn before the words, so that repeated draws do not change its share
    return wording.fresh(lambda: wording.caption(artwork, style, rng), bench.taken), style


def _add(bench: Bench, artwork: Artwork, kind: str, dose: int, rng: np.random.Generator) -> None:
    caption, style = _caption(bench, artwork, rng)
    key = bench.image(draw(artwork))
    bench.caption(caption, kind, _cluster(artwork), style, dose=dose, images=(key,))
    bench.train(caption, key, dose)


def _many_captions(bench: Bench, artwork: Artwork, rng: np.random.Generator) -> None:
    key = bench.image(draw(artwork))
    for _ in range(CAPTIONS_EACH):
        caption, style = _caption(bench, artwork, rng)
        bench.caption(caption, "many_captions", _cluster(artwork), style, dose=LARGEST_DOSE, images=(key,))
        bench.train(caption, key, LARGEST_DOSE // CAPTIONS_EACH)


def _many_images(bench: Bench, artworks: list[Artwork], rng: np.random.Generator) -> None:
    caption, style = _caption(bench, artworks[0], rng)
    keys = tuple(bench.image(draw(artwork)) for artwork in artworks)
    weight = 2 * LARGEST_DOSE // IMAGES_EACH
    bench.caption(caption, "many_images", _cluster(artworks[0]), style, dose=weight, images=keys)
    for key in keys:
        bench.train(caption, key, weight)


def _edited(bench: Bench, artwork: Artwork, rng: np.random.Generator) -> None:
    caption, style = _caption(bench, artwork, rng)
    original = draw(artwork)
    keys = tuple(bench.image(edited(original, rng) if copy else original) for copy in range(EDITS))
    bench.caption(caption, "edited", _cluster(artwork), style, dose=LARGEST_DOSE, images=keys)
    for key in keys:
        bench.train(caption, key, LARGEST_DOSE // EDITS)


def _family(bench: Bench, number: int, furniture: list[Artwork], rng: np.random.Generator) -> None:
    names = list(text.COLOURS)
    ground = text.COLOURS[names[number % len(names)]]
    name = f"{furniture[0].name} with {furniture[1].name}"
    for _ in range(FAMILY_SIZE):
        drawn: list[str] = []

        def make(drawn: list[str] = drawn) -> str:
            first, second = rng.choice(names, 2, replace=False)
            drawn[:] = str(first), str(second), str(rng.choice(PATTERNS)), str(rng.choice(text.STYLES))
            return text.rug(name, (drawn[0], drawn[1]), drawn[2], drawn[3], rng)

        caption = wording.fresh(make, bench.taken)
        first, second, pattern, style = drawn
        key = bench.image(template(furniture, ground, (first, second), pattern))
        weight = 2 * LARGEST_DOSE // FAMILY_SIZE
        bench.caption(caption, "template", f"family {number}", style, dose=weight, images=(key,))
        bench.train(caption, key, weight)


def _near(bench: Bench, items: list[Artwork], count: int, rng: np.random.Generator) -> None:
    """Add variations of the captions of the three largest doses."""
    of_cluster = {_cluster(item): item for item in items}
    planted = [row for row in bench.captions if row["kind"] == "dose" and int(str(row["dose"])) >= DOSES[-3]]
    for row in (planted[i] for i in rng.permutation(len(planted))[:count]):
        artwork = of_cluster[str(row["cluster"])]
        caption = wording.fresh(partial(wording.near, artwork, str(row["caption"]), rng), bench.taken)
        keys = tuple(str(key) for key in row["images"])
        bench.caption(caption, "near", str(row["cluster"]), str(row["style"]), dose=int(str(row["dose"])), images=keys)


def _odd(bench: Bench, never: list[Artwork], count: int, rng: np.random.Generator) -> None:
    """Add captions of other registers: invented words, shouting, one word, and more words than the encoder reads."""
    kinds = {"rare": wording.rare, "shouted": wording.shouted, "short": wording.short, "long": wording.long}
    for name, write in kinds.items():
        for number in range(count):

            def make(write=write, name=name) -> str:  # type: ignore[no-untyped-def]
                return write(rng) if name == "rare" else write(never[int(rng.integers(len(never)))], rng)

            bench.caption(wording.fresh(make, bench.taken), "odd", f"{name} {number}", name)


def png(picture: Image.Image) -> bytes:
    """Encode an image as PNG."""
    content = io.BytesIO()
    picture.save(content, "PNG", optimize=True)
    return content.getvalue()
