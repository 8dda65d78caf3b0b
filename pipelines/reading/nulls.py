"""Null captions: few enough to be held."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import AuditError
from pipelines.reading.files import open_file
from pipelines.reading.slices import require, without_mark


def read_null_captions(path: str, column: str) -> list[str]:
    """The distinct null captions of a text file, one a line, or of a Parquet column, in order."""
    if not path.endswith(".parquet"):
        with open_file(path) as source:
            try:
                lines = without_mark(source.read()).decode("utf-8").split("\n")
            except UnicodeDecodeError as error:
                raise AuditError(f"is not UTF-8: {error}", where=path, do="Save the captions as UTF-8.") from error
        return list(dict.fromkeys(line.rstrip("\r") for line in lines if line.strip()))
    with open_file(path) as source:
        try:
            parquet = pq.ParquetFile(source)
            require(column, parquet.schema_arrow.names, path, "calibration.column")
            values = parquet.read(columns=[column])[column].to_pylist()
        except pa.ArrowException as error:
            raise AuditError(f"cannot be read: {error}", where=path) from error
    return list(dict.fromkeys(value for value in values if value is not None))


def spread(captions: list[str], most: int) -> list[str]:
    """At most so many of them, evenly over the list."""
    return captions[:: -(-len(captions) // most)] if len(captions) > most else captions
