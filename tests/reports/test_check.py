import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from audit.errors import AuditError
from audit.record.manifest import RunManifest
from audit.record.manifest_entries import StageEntry
from reports.check import check, counts
from reports.stored_run import locate
from reports.views import connect
from tests.support.changed_run import change_manifest
from tests.support.faulty import Faulty

TABLES = (
    "rows",
    "captions",
    "caption_groups",
    "control_screen",
    "screen",
    "scores",
    "perturbations",
    "generations",
    "embeddings_sscd",
    "embeddings_clip",
    "image_clusters",
    "matches",
    "copied_images",
    "evidence",
    "verdicts",
    "errors",
)


@pytest.fixture(scope="module")
def stored(run: Path) -> Iterator[tuple[duckdb.DuckDBPyConnection, dict[str, pa.Table], RunManifest]]:
    with connect(run) as connection:
        tables = {table: connection.sql(f"from {table}").to_arrow_table() for table in TABLES}
        for table, rows in tables.items():
            connection.register(table, rows)
        yield connection, tables, locate(run).manifest()


@pytest.fixture
def faulty(stored: tuple[duckdb.DuckDBPyConnection, dict[str, pa.Table], RunManifest]) -> Iterator[Faulty]:
    """The finished run in memory."""
    found = Faulty(*stored)
    yield found
    found.repair()


def failed(run: Path) -> list[str]:
    return [f"{result.name}: {result.detail}" for result in check(run) if not result.ok]


def replaced(table: pa.Table, column: str, value: object) -> pa.Table:
    """The first row's `column` set to `value`."""
    field = table.schema.field(column)
    values = [value, *table[column].to_pylist()[1:]]
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table[:1]])


def without_first(table: pa.Table) -> pa.Table:
    return table[1:]


def without_one(purpose: str) -> Callable[[pa.Table], pa.Table]:
    """A change: the first generation of that purpose is gone."""

    def change(table: pa.Table) -> pa.Table:
        row = table["purpose"].to_pylist().index(purpose)
        return pa.concat_tables([table[:row], table[row + 1 :]])

    return change


def test_a_finished_run_closes(run: Path, faulty: Faulty) -> None:
    found = check(run)
    assert [result for result in found if not result.ok] == []
    assert found[1:] == list(counts(faulty.connection, faulty.manifest))
    assert len(found) > 10
    [line] = [result.detail for result in found if "input row" in result.name]
    assert "1 errors that cover an unknown number of rows" in line


@pytest.mark.parametrize(
    ("table", "change", "statement"),
    [
        ("rows", without_first, "every input row"),
        ("rows", without_first, "as many rows as its row_count"),
        ("rows", twice, "as many rows as its row_count"),
        ("captions", twice, "occurs once"),
        ("captions", without_first, "as many rows as its row_count"),
        ("captions", lambda table: replaced(table, "row_count", 7), "as many rows as its row_count"),
        ("verdicts", without_first, "exactly one verdict"),
        ("verdicts", twice, "exactly one verdict"),
        (
            "verdicts",
            lambda table: replaced(table, "verdict", "copied"),
            "verdicts.verdict has only known values: unknown: copied",
        ),
        ("verdicts", lambda table: replaced(table, "verdict", None), "verdicts.verdict has only known values"),
        ("verdicts", lambda table: replaced(table, "risk", "great"), "verdicts.risk"),
        ("verdicts", lambda table: replaced(table, "caption", "another"), "has the text and the row_count"),
        ("verdicts", lambda table: replaced(table, "image_id", None), "copied the training image in its verdict"),
        ("verdicts", lambda table: replaced(table, "verdict", "error"), "every error verdict has a message"),
        ("caption_groups", without_first, "exactly one group"),
        ("caption_groups", twice, "exactly one group"),
        ("scores", without_first, "exactly one row of scores"),
        ("scores", twice, "exactly one row of scores"),
        ("scores", lambda table: replaced(table, "selected_by", None), "selected caption was generated once"),
        ("control_screen", without_first, "`control_screen` has every control caption"),
        ("control_screen", twice, "every control caption was screened once"),
        ("control_screen", lambda table: replaced(table, "seed", 5), "every control caption was screened once"),
        ("screen", without_first, "screened once"),
        ("screen", twice, "screened once"),
        ("screen", lambda table: replaced(table, "seed", 5), "screened once"),
        ("screen", lambda table: replaced(table, "status", "odd"), "screen.status"),
        ("perturbations", without_first, "one perturbation margin"),
        ("perturbations", twice, "one perturbation margin"),
        ("perturbations", lambda table: replaced(table, "caption_id", "another"), "one perturbation margin"),
        ("generations", without_one("discover"), "selected caption was generated once"),
        ("generations", without_one("fresh"), "confirmed caption was generated again once"),
        ("generations", without_one("control"), "each belongs to a generation"),
        (
            "generations",
            lambda table: replaced(table, "purpose", "control"),
            "control caption with a generation was generated",
        ),
        ("generations", twice, "selected caption was generated once"),
        ("generations", lambda table: replaced(table, "purpose", "fun"), "generations.purpose"),
        ("generations", lambda table: replaced(table, "status", "odd"), "generations.status"),
        ("matches", twice, "no match occurs twice"),
        ("matches", without_first, "looked up in `embeddings_sscd`"),
        ("matches", lambda table: replaced(table, "seed", 99), "each belongs to a generation"),
        ("matches", lambda table: replaced(table, "image_id", "nowhere"), "match is an image in `embeddings_sscd`"),
        ("matches", lambda table: replaced(table, "embedder", "eye"), "matches.embedder"),
        ("embeddings_sscd", without_first, "has a vector from every embedder"),
        ("embeddings_sscd", twice, "has a vector from every embedder"),
        ("embeddings_clip", twice, "has a vector from every embedder"),
        ("copied_images", twice, "listed once per caption"),
        ("copied_images", lambda table: replaced(table, "caption_id", "another"), "only for confirmed captions"),
        ("copied_images", without_first, "copied the training image in its verdict"),
        ("copied_images", lambda table: replaced(table, "copy_type", "somehow"), "as the verdict says"),
        ("copied_images", lambda table: replaced(table, "image_id", "nowhere"), "copied image is an image in"),
        ("evidence", without_first, "`evidence` has the training images"),
        ("evidence", twice, "`evidence` has the training images"),
        ("evidence", lambda table: replaced(table, "image_id", "another"), "`evidence` has the training images"),
        ("errors", without_first, "every input row"),
        ("errors", twice, "as many rows per stage"),
        ("errors", lambda table: replaced(table, "stage", "elsewhere"), "as many rows per stage"),
        ("image_clusters", without_first, "images with a vector are the images in clusters"),
        (
            "image_clusters",
            lambda table: replaced(table, "image_id", "nowhere"),
            "images with a vector are the images in clusters",
        ),
        ("image_clusters", twice, "in one cluster"),
        ("image_clusters", lambda table: replaced(table, "cluster_size", 2), "in one cluster"),
    ],
)
def test_a_fault_in_the_engine_is_found(faulty: Faulty, table: str, change: Any, statement: str) -> None:
    faulty.edit(table, change)
    assert any(statement in line for line in faulty.failed()), list(faulty.failed())


@pytest.mark.parametrize(
    ("stage", "tables"), [("screen", ("screen",)), ("generate", ("generations", "matches")), ("confirm", ("matches",))]
)
def test_what_failed_may_be_missing_if_errors_says_so(faulty: Faulty, stage: str, tables: tuple[str, ...]) -> None:
    ident = faulty.tables[tables[0]]["caption_id"][0].as_py()
    for table in tables:
        faulty.edit(table, lambda rows: rows.filter(pc.not_equal(rows["caption_id"], ident)))
    assert any(faulty.failed())
    lost = {"stage": stage, "caption_id": ident, "kind": "crash", "message": "the worker died"}
    faulty.edit("errors", lambda rows: pa.concat_tables([rows, pa.Table.from_pylist([lost], rows.schema)]))
    faulty.manifest.stages.setdefault(stage, StageEntry()).errors += 1
    assert not any(faulty.failed())


def test_rows_left_out_by_sampling_are_part_of_the_sum(faulty: Faulty) -> None:
    faulty.manifest.accounting.sampled_out = 10
    assert any("every input row" in line for line in faulty.failed())
    faulty.manifest.accounting.input_rows += 10
    assert not any(faulty.failed())


def test_a_part_that_is_missing_torn_short_or_unlisted_is_named(own_run: Path) -> None:
    (own_run / "rows" / "00000.parquet").unlink()
    torn = own_run / "screen" / "00001.parquet"
    torn.write_bytes(torn.read_bytes()[:-9])
    pq.write_table(pq.read_table(own_run / "scores" / "00000.parquet")[1:], own_run / "scores" / "00000.parquet")
    (own_run / "captions" / "00009.parquet").write_bytes((own_run / "captions" / "00000.parquet").read_bytes())
    [line] = failed(own_run)
    for wrong in ("rows/00000.parquet is missing", "screen/00001.parquet cannot be read", "scores/00000.parquet has"):
        assert wrong in line
    assert "captions/00009.parquet is not listed" in line


def test_these_are_all_tables_of_the_run(run: Path) -> None:
    assert {path.name for path in run.iterdir() if path.is_dir()} == set(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_a_part_of_any_table_that_is_removed_truncated_or_doubled_is_named(own_run: Path, table: str) -> None:
    part = own_run / table / "00000.parquet"
    content = part.read_bytes()
    part.unlink()
    assert f"{table}/00000.parquet is missing" in failed(own_run)[0]
    for cut in (len(content) - 1, len(content) // 2, 0):
        part.write_bytes(content[:cut])
        assert f"{table}/00000.parquet cannot be read" in failed(own_run)[0]
    part.write_bytes(content)
    (own_run / table / "twin.parquet").write_bytes(content)
    assert f"{table}/twin.parquet is not listed" in failed(own_run)[0]


def first_half(table: pa.Table) -> pa.Table:
    return table[: len(table) // 2]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda rows: pa.concat_tables([rows, first_half(rows)]), marks=pytest.mark.soak),
        pytest.param(first_half, marks=pytest.mark.soak),
        lambda rows: rows[:0],
    ],
)
def test_a_part_or_table_that_the_manifest_too_has_forgotten_or_counts_twice_is_found(
    faulty: Faulty, table: str, change: Any
) -> None:
    faulty.edit(table, change)
    assert any(faulty.failed())


def test_vectors_that_the_manifest_too_has_forgotten_are_a_failed_check_and_not_a_crash(own_run: Path) -> None:
    shutil.rmtree(own_run / "embeddings_sscd")
    parts = json.loads((own_run / "manifest.json").read_text())["parts"]
    del parts["embeddings_sscd"]
    change_manifest(own_run, parts=parts)
    assert any("every table can be read" in line for line in failed(own_run))


def test_damage_inside_a_part_is_a_failed_check_and_not_a_crash(own_run: Path) -> None:
    part = own_run / "captions" / "00000.parquet"
    content = bytearray(part.read_bytes())
    content[40:400] = bytes(360)
    part.write_bytes(content)
    assert any("every table can be read" in line for line in failed(own_run))


def test_without_a_manifest_there_is_nothing_to_check(own_run: Path) -> None:
    (own_run / "manifest.json").unlink()
    with pytest.raises(AuditError, match="no manifest.json"):
        check(own_run)
