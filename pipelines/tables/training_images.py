"""Read where training images lie, and the images themselves."""

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

    from pipelines.configuration.config import Images


# Working table: where each image lies.
IMAGES = "_images"


def listed(ledger: Ledger) -> int:
    """How many training images there are, readable or not."""
    return sum(ledger.rows(IMAGES, part) for part in ledger.parts(IMAGES))


def primary(options: Images) -> str:
    """The orientation of the pictures in `table`, of which every readable image has one."""
    return STORED if options.exif == "ignore" else UPRIGHT


def places_of(ledger: Ledger, image_ids: Sequence[str]) -> dict[str, pa.Table]:
    """Where images lie (one row of schema INDEX each), by id."""
    wanted = pa.array(sorted(set(image_ids)), pa.string())
    found = {}
    for _, part in ledger.each(IMAGES):
        part = part.filter(pc.is_in(part["image_id"], value_set=wanted))
        found.update({id_: part.slice(row, 1) for row, id_ in enumerate(part["image_id"].to_pylist())})
    return found


# An image, and how it lies.
Turned = tuple[str, str]


def pictures(
    options: Images, places: Mapping[str, pa.Table], wanted: Iterable[Turned]
) -> Iterator[tuple[Turned, Image]]:
    """Read training images back from their source.

    Args:
        wanted: (image_id, orientation) of each; `places` has where they lie.

    Yields each once with its picture. Raises what `decode` raises.
    """
    for id_, orientation in sorted(set(wanted)):
        [content] = images.read(places[id_], options.column)
        yield (id_, orientation), decode(content, options.crop, orientation)
