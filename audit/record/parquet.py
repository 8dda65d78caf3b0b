"""Scan Parquet files whose sizes are known: an object store is not asked for the size of each file again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.fs as pafs

if TYPE_CHECKING:
    # It imports pandas where that is installed, so it is imported when a dataset is scanned.
    import pyarrow.dataset as pads


def parquet_file(filesystem: pafs.FileSystem, file: pafs.FileInfo) -> pads.ParquetFileFragment:
    """Return a file as a fragment of a dataset, without reading it."""
    import pyarrow.dataset as pads

    return pads.ParquetFileFormat().make_fragment(file.path, filesystem, file_size=file.size)


def parquet_dataset(
    filesystem: pafs.FileSystem, files: Sequence[pafs.FileInfo], layout: pa.Schema | None = None
) -> pads.Dataset:
    """Return files as one dataset.

    Args:
        filesystem: Where they are.
        files: The files, as the file system has listed them.
        layout: The schema; None for that of the first file. It is required if there are no files.
    """
    import pyarrow.dataset as pads

    fragments = [parquet_file(filesystem, file) for file in files]
    found = fragments[0].physical_schema if layout is None else layout
    return pads.FileSystemDataset(fragments, found, pads.ParquetFileFormat(), filesystem)
