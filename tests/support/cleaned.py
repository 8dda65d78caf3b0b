"""Clean a dataset and read what is left."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.runs.clean import write_clean_copies
from pipelines.writing.counts import Counts


def cleaned(exclusions: str, dataset: Path | list[str], out: Path) -> tuple[Counts, list[str]]:
    """Write clean copies into a folder, and return the counts and the messages."""
    said: list[str] = []
    given_ = [str(dataset)] if isinstance(dataset, Path) else dataset
    return write_clean_copies(exclusions, given_, str(out), said.append), said


def captions_of(path: Path) -> list[str]:
    """Return the captions of a Parquet file."""
    return pq.read_table(path)["caption"].to_pylist()


def members_of(path: Path) -> list[str]:
    """Return the names of the members of a tar."""
    with tarfile.open(path) as tar:
        return tar.getnames()
