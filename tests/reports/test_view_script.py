"""The script of `crossaudit views` in a DuckDB that knows nothing of crossaudit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.errors import UsageError
from audit.record.ledger import Ledger
from reports.stored_run import SCHEMAS
from reports.view_script import script
from reports.views import VIEWS, connect
from tests.support.manifests import manifest

HOSTILE_NAMES = ["a 'quoted' run", "run'; drop table x; --", "[a-z]*?{1,2}", 'new\nline "and" \\x', "日本語"]


def test_every_view_is_as_crossaudit_has_it(run: Path) -> None:
    bare = duckdb.connect()
    bare.execute(script(run))
    with connect(run) as connection:
        views = [view for (view,) in connection.execute("show tables").fetchall()]
        assert {*SCHEMAS, *VIEWS, "stages", "thresholds", "human_verdicts"} <= set(views)
        assert [view for (view,) in bare.execute("show tables").fetchall()] == views
        for view in views:
            found, expected = bare.table(view).to_arrow_table(), connection.table(view).to_arrow_table()
            if view.startswith("embeddings_"):
                found = found.drop_columns("vector")  # DuckDB reads from a file what it cannot take from Arrow
            assert found.schema.names == expected.schema.names
            for one, other in zip(found.columns, expected.columns, strict=True):
                assert one.type == other.type
                if one.type == "double":
                    np.testing.assert_allclose(one.to_numpy(), other.to_numpy())  # sums in another order
                else:
                    assert one == other


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_the_folder_of_a_run_may_have_any_name(run: Path, tmp_path: Path, name: str) -> None:
    bare = duckdb.connect()
    bare.execute(script(shutil.copytree(run, tmp_path / name)))
    stored = pa.concat_tables(pq.read_table(part) for part in sorted((run / "verdicts").iterdir()))
    assert bare.table("verdicts").to_arrow_table().column("caption_id") == stored["caption_id"]


def test_a_run_that_has_written_nothing_yet_has_every_view(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps(manifest()))
    bare = duckdb.connect()
    bare.execute(script(tmp_path))
    for view in (*SCHEMAS, *VIEWS):
        assert bare.table(view).columns
    assert bare.execute("select sum(captions) from funnel").fetchall() == [(0,)]


def test_parts_with_other_detector_columns_are_read_by_name(own_run: Path) -> None:
    part = sorted((own_run / "screen").iterdir())[0]
    pq.write_table(pq.read_table(part).drop_columns("entropy_single_step"), part)
    bare = duckdb.connect()
    bare.execute(script(own_run))
    sql = "select count(*), count(entropy_single_step) from screen"
    [(rows, scored)] = bare.execute(sql).fetchall()
    assert 0 < scored < rows
    with connect(own_run) as connection:
        assert connection.execute(sql).fetchall() == [(rows, scored)]


def test_a_damaged_part_is_named_by_duckdb(own_run: Path) -> None:
    bare = duckdb.connect()
    bare.execute(script(own_run))
    part = own_run / "verdicts/00001.parquet"
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(duckdb.Error, match=r"verdicts/00001\.parquet"):
        bare.execute("from cases").fetchall()


def test_a_run_where_duckdb_cannot_read_is_refused() -> None:
    Ledger("memory://views/run").write_bytes("manifest.json", json.dumps(manifest()).encode())
    with pytest.raises(UsageError, match="DuckDB cannot read memory://"):
        script("memory://views/run")
