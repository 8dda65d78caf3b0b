"""Read held-out pairs: images with captions that the model was never trained on.

A picture of what a caption describes may resemble a generation of that caption without any memorization. Random control
captions cannot show this, because the images of what they describe are not among the training images. The captions of
held-out pairs are generated, and compared with their own images as well as with the training images.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import audit
from audit import schema
from audit.errors import AuditError
from pipelines.configuration.config import Config
from pipelines.configuration.inputs import Captions
from pipelines.engine.context import Run
from pipelines.reading import captions as captions_of
from pipelines.reading import images
from pipelines.reading.files import File, find

# Working table: the locations of the held-out images (schema images.INDEX).
PLACES = "_held_out_images"
_PAIRS = pa.schema([pa.field("caption_id", pa.string()), pa.field("caption", pa.string()), *images.INDEX])


def find_pairs(config: Config) -> list[File]:
    """Find the files of held-out pairs. Returns an empty list if none are configured or there are no images."""
    if config.calibration.pairs is None or config.images is None:
        return []
    return find(config.calibration.pairs, "calibration.pairs")


def choose(run: Run) -> pa.Table:
    """Choose the pairs to generate, write `held_out_pairs`, and return (caption_id, caption).

    There are at most as many as there are control captions that measure. They are chosen by a hash of the caption and
    the seed of the run's random draws.
    """
    ledger, config = run.ledger, run.config
    if not ledger.parts("held_out_pairs"):
        found, problems = [], []
        for file in find_pairs(config):
            pairs, problem = _pairs_of(file, config)
            found.append(pairs)
            problems += [problem] if problem else []
        pairs = _unseen(run, pa.concat_tables(found))
        if not len(pairs):
            raise AuditError(
                "no held-out pair has both a caption and an image, and a caption that is not in the dataset",
                where=str(config.calibration.pairs),
                hint="Give WebDataset tars with an image and a .txt or .json file per sample, or Parquet files.",
            )
        seed = run.manifest.data.seeds.sample
        assert seed is not None  # the stage select has set it
        order = [_rank(id_, seed) for id_ in pairs["caption_id"].to_pylist()]
        chosen = pairs.take(pc.sort_indices(pa.array(order))).slice(0, max(1, config.confirm.control_captions // 2))
        ledger.write(PLACES, "00000", chosen.select(images.INDEX.names))
        ledger.write("held_out_pairs", "00000", chosen.select(schema.HELD_OUT_PAIRS.names))
        run.manifest.part("held_out_pairs", "00000", len(chosen))
        for problem in problems:
            run.progress.say(f"generate: warning: held-out pairs: {problem}")
    return ledger.read("held_out_pairs", columns=["caption_id", "caption"])


def _pairs_of(file: File, config: Config) -> tuple[pa.Table, str | None]:
    """Return the pairs of a file, with the columns of HELD_OUT_PAIRS and INDEX, and what could not be used."""
    assert config.images is not None
    options = Captions(path=file.uri, caption=config.calibration.column)
    captions_of.check([file], options)
    slices, errors = captions_of.plan(file, options)
    texts = []
    for part in slices:
        table, bad = captions_of.read(part, 0, part.rows, options)
        texts.append(table.select(["caption", "row"]))
        errors += bad
    places, problem = images.index(file, config.images.column)
    # The same name and row may exist among the training images.
    image_ids = [
        images.image_id(f"held out/{name}", row)
        for name, row in zip(places["file"].to_pylist(), places["row"].to_pylist(), strict=True)
    ]
    places = places.set_column(0, "image_id", pa.array(image_ids, pa.string()))
    captions = pa.concat_tables(texts) if texts else pa.table({"caption": pa.array([], pa.string())})
    if not len(captions) or not len(places):
        return _PAIRS.empty_table(), problem or f"{file.name}: no pair of a caption and an image"
    pairs = captions.join(places, "row", join_type="inner").sort_by("row")
    ids = pa.array(map(audit.caption_id, pairs["caption"].to_pylist()), pa.string())
    pairs = pairs.append_column("caption_id", ids)
    unused = len(captions) + len(errors) - len(pairs)
    if problem is None and unused:
        problem = f"{file.name}: {unused:,} of {len(captions) + len(errors):,} samples cannot be used"
        problem += f", such as: {errors[0]['message']}" if errors else ": they have no image"
    return pairs.select(_PAIRS.names).cast(_PAIRS), problem


def _unseen(run: Run, pairs: pa.Table) -> pa.Table:
    """Leave out the captions of the dataset, and all but the first pair of a caption."""
    known = run.ledger.dataset("captions", schema.CAPTIONS).to_table(
        ["caption_id"], pc.field("caption_id").isin(pairs["caption_id"].unique())
    )
    pairs = pairs.filter(pc.invert(pc.is_in(pairs["caption_id"], value_set=known["caption_id"].combine_chunks())))
    _, first = np.unique(pairs["caption_id"].to_pylist(), return_index=True)
    return pairs.take(pa.array(np.sort(first), pa.int64()))


def _rank(caption_id: str, seed: int) -> str:
    return blake2b(f"{seed} {caption_id}".encode(), digest_size=16).hexdigest()
