"""Record the share of rows that are paired with their own image, and refuse a share that is too small."""

from __future__ import annotations

import duckdb
import pyarrow.compute as pc

from audit import schema
from audit.errors import UsageError
from audit.record.manifest_entries import PairCounts
from pipelines.engine.context import Run
from pipelines.reading import captions as captions_of
from pipelines.reading import plaintext
from pipelines.reading.files import File
from pipelines.reading.images import INDEX
from pipelines.tables.training_images import IMAGES

# Number of unpaired rows, and of unpaired images, that an error shows.
EXAMPLES = 3
_ROWS = 'select file, "row", key from rows where image_id is null limit $most'
_IMAGES = 'select file, "row", key from images anti join rows using (image_id) limit $most'


def run(run: Run, caption_files: list[File]) -> None:
    """Record how many rows are paired with their own image in `accounting.pairs` of the manifest.

    The minimum share does not apply if `images.join_on` is `none`, or if all captions are plain text, because a line of
    text names no image.

    Raises:
        UsageError: The share is below `images.min_paired`. The error shows unpaired rows and unpaired images.
    """
    options = run.config.images
    if options is None:
        return
    rows = run.ledger.dataset("rows", schema.ROWS)
    total = rows.count_rows()
    paired = rows.count_rows(filter=pc.field("image_id").is_valid())
    named = any(captions_of.module_of(file) is not plaintext for file in caption_files)
    applies = options.join_on != "none" and named
    run.manifest.data.accounting.pairs = PairCounts(rows=total, paired=paired, applies=applies)
    share = paired / total if total else 1.0
    reason = "images.join_on is none" if options.join_on == "none" else "lines of text name no image"
    why = "" if applies else f" ({reason})"
    having = "every row has its" if paired == total else f"{paired:,} of {total:,} rows have their"
    run.progress.note(f"{having} own image{why}")
    if applies and share < options.min_paired:
        run.manifest.write()
        raise UsageError(
            f"only {paired:,} of {total:,} rows ({share:.1%}) are paired with their own image; {_examples(run)}",
            where="images.join_on",
            hint="Set captions.key to the column that names the image and images.join_on to how it does. If rows have "
            "no images of their own, set images.join_on: none, or lower images.min_paired.",
        )


def _examples(run: Run) -> str:
    """Describe some rows without an image and some images without a row."""
    with duckdb.connect() as connection:
        connection.register("rows", run.ledger.dataset("rows", schema.ROWS))
        connection.register("images", run.ledger.dataset(IMAGES, INDEX))
        found = [connection.execute(sql, {"most": EXAMPLES}).fetchall() for sql in (_ROWS, _IMAGES)]
    texts = ["; ".join(f"{file} row {row} key {key!r}" for file, row, key in side) or "none" for side in found]
    return f"rows without an image: {texts[0]}; images without a row: {texts[1]}"
