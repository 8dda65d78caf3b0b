"""Read training images from the dataset of a finished run, which no longer knows where each image lies."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow.compute as pc

from audit.images.decoding import decode
from audit.images.png import png
from audit.record.ledger import Ledger
from pipelines.configuration.config import Config
from pipelines.reading import images
from pipelines.reading.files import File
from pipelines.reading.folders import Folder
from pipelines.reading.input_files import find_images
from pipelines.tables.embeddings import table


def read_images(ledger: Ledger, config: Config, orientation_of: Mapping[str, str]) -> dict[str, bytes]:
    """Read training images as the run compared them.

    Args:
        ledger: The run.
        config: Its configuration.
        orientation_of: The orientation of each image to read, by image_id.

    Returns:
        The images as PNG, by image_id. An image that has changed since the run, or cannot be read, is left out.

    Raises:
        AuditError: The image files of the configuration cannot be found, or the storage does not answer.
    """
    assert config.images is not None
    wanted = pc.field("image_id").isin(list(orientation_of))
    columns = ["image_id", "file", "sha256"]
    listed = ledger.dataset(table(config.confirm.embedders[0])).to_table(columns, wanted).to_pylist()
    sha256_of = {row["image_id"]: row["sha256"] for row in listed}
    names = {row["file"] for row in listed}
    found = {}
    for file in find_images(config):
        if not names & _names(file):
            continue
        places, _ = images.index(file, config.images.column)
        places = places.filter(pc.field("image_id").isin(list(sha256_of)))
        contents = images.read_each(places, config.images.column)
        for id_, content in zip(places["image_id"].to_pylist(), contents, strict=True):
            if isinstance(content, bytes) and hashlib.sha256(content).hexdigest() == sha256_of[id_]:
                picture = decode(content, config.images.crop, orientation_of[id_])
                found[id_] = png(np.asarray(picture))
    return found


def _names(file: File) -> set[str]:
    return {image.name for image in file.images} if isinstance(file, Folder) else {file.name}
