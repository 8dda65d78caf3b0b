"""Read the captions of a dataset outside a run: slice by slice, or a random sample of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from audit.duplicates.captions import caption_groups, caption_id, draws
from audit.errors import AuditError
from pipelines.configuration.inputs import Captions
from pipelines.configuration.settings import absolute
from pipelines.reading import captions as captions_of
from pipelines.reading import columns
from pipelines.reading.caption_choice import choose_caption_files
from pipelines.reading.slices import Slice


@dataclass(frozen=True)
class Dataset:
    """The caption files of a dataset, and how to read them."""

    options: Captions
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(part.rows for part in self.slices)

    def each(self) -> Iterator[tuple[Slice, pa.Table]]:
        """Yield each slice and its rows with a caption (`caption`, `row`, `key`, `url`)."""
        for part in self.slices:
            table, _ = captions_of.read(part, 0, part.rows, self.options)
            yield part, table


def open_dataset(paths: Sequence[str], column: str | None = None) -> Dataset:
    """Find the caption files of a dataset, in every format that `captions.path` accepts.

    Args:
        paths: Files, folders or globs.
        column: The caption column (default: as for `captions.caption`).

    Raises:
        AuditError: A file cannot be read, or none has rows.
        UsageError: A path is missing, a format is unknown or a column is missing.
    """
    options = Captions(path=[absolute(path, Path.cwd()) for path in paths])
    files = choose_caption_files(options, None)
    chosen = column or columns.column_of(files, options) or columns.DEFAULT
    options = options.model_copy(update={"caption": chosen})
    captions_of.check(files, options)
    slices: list[Slice] = []
    for file in files:
        found, problems = captions_of.plan(file, options)
        if problems:
            raise AuditError(f"cannot be read: {problems[0]['message']}", where=file.uri)
        slices += found
    if not slices:
        raise AuditError("the dataset has no rows", where=", ".join(paths))
    return Dataset(options, tuple(slices))


def sample(dataset: Dataset, size: int, seed: int) -> list[str]:
    """Draw `size` distinct captions at random, or all if there are fewer, in the order of the draw.

    Which ones depends on the texts of the dataset and the seed alone, not on files, order or repetitions.
    """
    number_of: dict[str, float] = {}
    for _, table in dataset.each():
        texts = list(dict.fromkeys(table["caption"].to_pylist()))
        numbers = draws([caption_id(text) for text in texts], seed).tolist()
        number_of |= zip(texts, numbers, strict=True)
        first = sorted(number_of, key=lambda text: (number_of[text], text))[:size]
        number_of = {text: number_of[text] for text in first}
    return list(number_of)


def grouped(captions: Sequence[str]) -> pa.Table:
    """Return captions as `audit.calibration.likeness.compare` reads them; which are truncated is not known."""
    return pa.table(
        {
            "caption": pa.array(captions, pa.string()),
            "caption_group": pa.array(caption_groups(captions), pa.string()),
            "truncated": pa.repeat(False, len(captions)),
        }
    )
