"""Damage a file."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq


def corrupt(path: Path, group: int, column: str) -> None:
    """Overwrite the pages of one column chunk of a Parquet file; the footer stays sound."""
    metadata = pq.read_metadata(path).row_group(group)
    chunk = next(c for n in range(metadata.num_columns) if (c := metadata.column(n)).path_in_schema == column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(content)
