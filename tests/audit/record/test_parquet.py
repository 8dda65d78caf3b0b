"""Files with known sizes are one dataset."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from audit.record.parquet import parquet_dataset, parquet_file

HERE = pafs.LocalFileSystem()


@pytest.fixture
def files(tmp_path: Path) -> list[pafs.FileInfo]:
    for name, values in (("b", [3]), ("a", [1, 2])):
        pq.write_table(pa.table({"n": values}), tmp_path / f"{name}.parquet")
    return HERE.get_file_info([f"{tmp_path}/{name}.parquet" for name in "ba"])


def test_the_rows_come_in_the_order_of_the_files(files: list[pafs.FileInfo]) -> None:
    assert parquet_dataset(HERE, files).to_table()["n"].to_pylist() == [3, 1, 2]
    assert [parquet_file(HERE, file).metadata.num_rows for file in files] == [1, 2]


def test_columns_that_a_file_lacks_are_null(files: list[pafs.FileInfo]) -> None:
    layout = pa.schema([("n", pa.int64()), ("more", pa.string())])
    assert parquet_dataset(HERE, files, layout).to_table()["more"].to_pylist() == [None] * 3
    assert parquet_dataset(HERE, [], layout).to_table().equals(layout.empty_table())


def test_a_file_of_another_size_is_an_error(files: list[pafs.FileInfo]) -> None:
    Path(files[0].path).write_bytes(b"PAR1")
    with pytest.raises(pa.ArrowInvalid, match="Parquet"):
        parquet_dataset(HERE, files).to_table()


def test_a_layout_without_columns_is_kept_and_no_file_is_read(files: list[pafs.FileInfo]) -> None:
    Path(files[0].path).unlink()
    assert parquet_dataset(HERE, files, pa.schema([])).schema.names == []
