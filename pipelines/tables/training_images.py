"""Read training images and their locations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from audit.images.decoding import STORED, UPRIGHT, decode
from audit.record.ledger import Ledger
from pipelines.reading import images

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipelines.configuration.inputs import Images


# Working table: the location of each image.
IMAGES = "_images"


def listed(ledger: Ledger) -> int:
    """Return the number of training images, readable or not."""
    return sum(ledger.rows(IMAGES, part) for part in ledger.parts(IMAGES))


def primary(options: Images) -> str:
    """Return the orientation of the images in `embeddings.table`, which has every readable image."""
    return STORED if options.exif == "ignore" else UPRIGHT


def places_of(ledger: Ledger, image_ids: Sequence[str], table: str = IMAGES) -> dict[str, pa.Table]:
    """Map image ids to their locations in a working table (one row of schema INDEX each)."""
    wanted = pa.array(sorted(set(image_ids)), pa.string())
    found = {}
    for _, part in ledger.each(table):
        part = part.filter(pc.is_in(part["image_id"], value_set=wanted))
        found.update({id_: part.slice(row, 1) for row, id_ in enumerate(part["image_id"].to_pylist())})
    return found


# (image_id, orientation)
Turned = tuple[str, str]


def pictures(
    options: Images, places: Mapping[str, pa.Table], wanted: Iterable[Turned]
) -> Iterator[tuple[Turned, Image]]:
    """Read training images from their source.

    Args:
        options: The configuration of the images.
        places: The location of each image by id, from `places_of`.
        wanted: The images to read, as (image_id, orientation).

    Yields:
        Each wanted image once, with its picture.

    Raises:
        Exception: Whatever `decode` raises.
    """
    for id_, orientation in sorted(set(wanted)):
        [content] = images.read(places[id_], options.column)
        yield (id_, orientation), decode(content, options.crop, orientation)
