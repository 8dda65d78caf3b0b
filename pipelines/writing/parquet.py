"""Copy a Parquet file without excluded rows, with the same schema, metadata, compression and order."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audit.duplicates.captions import caption_id
from audit.errors import AuditError, UsageError
from pipelines.writing.counts import Counts


def clean(source: pa.NativeFile, sink: pa.NativeFile, exclusions: pa.Table, caption: str | None) -> Counts:
    """Copy a Parquet file row group by row group without the dropped rows.

    Args:
        source: The file.
        sink: The copy.
        exclusions: (row, caption_id, action), sorted by row, without duplicates.
        caption: The caption column, or None to skip the comparison of captions.

    Returns:
        The counts, with `rows_out` 0: count the rows of the copy to get it.

    Raises:
        AuditError: The caption of an excluded row is not the one that was audited.
        UsageError: There is no caption column.
    """
    parquet = pq.ParquetFile(source)
    layout = parquet.schema_arrow
    if caption is not None and len(exclusions) and caption not in layout.names:
        raise UsageError(f"no column {caption!r}: this is not the file that was audited")
    row_N = exclusions["row"].to_numpy()
    drop_N = np.array(exclusions["action"].to_pylist(), object) == "drop"
    first = dropped = met = 0
    with pq.ParquetWriter(sink, layout, compression=_codecs(parquet)) as writer:
        for number in range(parquet.num_row_groups):
            group = parquet.read_row_group(number)
            start, stop = np.searchsorted(row_N, [first, first + len(group)])
            inside = row_N[start:stop] - first
            if caption is not None:
                _compare(group[caption], inside, exclusions["caption_id"].slice(start, stop - start), first)
            stays = np.ones(len(group), bool)
            stays[inside[drop_N[start:stop]]] = False
            kept = group.filter(pa.array(stays))
            if len(kept):
                writer.write_table(kept, row_group_size=len(kept))
            first, dropped, met = first + len(group), dropped + int((~stays).sum()), met + len(inside)
    return Counts(first, dropped, 0, met)


def _compare(captions: pa.ChunkedArray, inside: np.ndarray, ids: pa.ChunkedArray, first: int) -> None:
    for row, texts, expected in zip(inside, _texts(captions, inside), ids.to_pylist(), strict=True):
        found = [caption_id(text) for text in texts]
        if expected is not None and expected not in found:
            there = ", ".join(found) or "none"
            what = f"row {first + row}: its caption is not the one that was audited ({there}, not {expected})"
            raise AuditError(what, hint="Give the same files that the run read, or audit these files.")


def _texts(captions: pa.ChunkedArray, inside: np.ndarray) -> list[list[str]]:
    """Return the captions of some rows. Bytes that are not UTF-8 are replaced; such text was never audited."""
    column = captions.take(pa.array(inside))
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    several = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    rows = column.cast(pa.list_(pa.binary()) if several else pa.binary()).to_pylist()
    listed = [(row or []) if several else [row] for row in rows]
    return [[value.decode("utf-8", "replace") for value in row if value is not None] for row in listed]


def _codecs(parquet: pq.ParquetFile) -> dict[str, str] | str:
    """Return the compression of each column in the first row group."""
    if not parquet.num_row_groups:
        return "snappy"
    group = parquet.metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    return {column.path_in_schema: column.compression for column in columns}
