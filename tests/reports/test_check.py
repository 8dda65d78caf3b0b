import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from audit.errors import AuditError
from reports.check import check


def failed(run: Path) -> list[str]:
    return [f"{result.name}: {result.detail}" for result in check(run) if not result.ok]


def edit(run: Path, table: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Changes the first part of a table, and the manifest with it, as an engine with a fault would."""
    part = run / table / "00000.parquet"
    changed = change(pq.read_table(part))
    pq.write_table(changed, part)
    edit_manifest(run, lambda manifest: manifest["parts"][table].update({"00000.parquet": changed.num_rows}))


def edit_manifest(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    change(manifest)
    (run / "manifest.json").write_text(json.dumps(manifest))


def replaced(table: pa.Table, column: str, value: object) -> pa.Table:
    """The first row's `column` set to `value`."""
    field = table.schema.field(column)
    values = [value, *table[column].to_pylist()[1:]]
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table[:1]])


def without_first(table: pa.Table) -> pa.Table:
    return table[1:]


def test_a_finished_run_closes(run: Path) -> None:
    assert failed(run) == []
    assert len(check(run)) > 10


@pytest.mark.parametrize(
    ("table", "change", "statement"),
    [
        ("rows", without_first, "every input row"),
        ("rows", without_first, "as many rows as copies"),
        ("captions", twice, "occurs once"),
        ("captions", without_first, "as many rows as copies"),
        ("captions", lambda table: replaced(table, "copies", 7), "as many rows as copies"),
        ("verdicts", without_first, "exactly one verdict"),
        ("verdicts", twice, "exactly one verdict"),
        (
            "verdicts",
            lambda table: replaced(table, "verdict", "copied"),
            "verdicts.verdict has known words only: unknown: copied",
        ),
        ("verdicts", lambda table: replaced(table, "verdict", None), "verdicts.verdict has known words only"),
        ("verdicts", lambda table: replaced(table, "caption", "another"), "carries the caption"),
        ("verdicts", lambda table: replaced(table, "image_id", None), "names a training image"),
        ("screen", without_first, "screened once"),
        ("screen", twice, "screened once"),
        ("screen", lambda table: replaced(table, "seed", 5), "screened once"),
        ("screen", lambda table: replaced(table, "status", "odd"), "screen.status"),
        ("generations", without_first, "generated with every seed"),
        ("generations", twice, "no generation occurs twice"),
        ("generations", lambda table: replaced(table, "purpose", "fun"), "generations.purpose"),
        ("scores", lambda table: replaced(table, "selected_by", None), "generated with every seed"),
        ("errors", without_first, "every input row"),
        ("image_clusters", twice, "in one cluster"),
        ("image_clusters", lambda table: replaced(table, "size", 2), "in one cluster"),
    ],
)
def test_a_fault_in_the_engine_is_found(own_run: Path, table: str, change: Any, statement: str) -> None:
    edit(own_run, table, change)
    assert any(statement in line for line in failed(own_run)), failed(own_run)


@pytest.mark.parametrize(("stage", "table"), [("screen", "screen"), ("generate", "generations")])
def test_what_failed_may_be_missing_if_errors_says_so(own_run: Path, stage: str, table: str) -> None:
    part = pq.read_table(own_run / table / "00000.parquet")
    ident = part["caption_id"][0].as_py()
    edit(own_run, table, lambda rows: rows.filter(pc.not_equal(rows["caption_id"], ident)))
    assert failed(own_run)
    lost = {"stage": stage, "caption_id": ident, "kind": "crash", "message": "the worker died"}
    edit(own_run, "errors", lambda rows: pa.concat_tables([rows, pa.Table.from_pylist([lost], rows.schema)]))
    assert failed(own_run) == []


def test_rows_left_out_by_sampling_are_part_of_the_sum(own_run: Path) -> None:
    edit_manifest(own_run, lambda manifest: manifest["accounting"].update(sampled_out=10))
    assert any("every input row" in line for line in failed(own_run))
    edit_manifest(
        own_run, lambda manifest: manifest["accounting"].update(input_rows=manifest["accounting"]["input_rows"] + 10)
    )
    assert failed(own_run) == []


def test_units_of_unknown_size_are_counted_apart(run: Path) -> None:
    [line] = [result.detail for result in check(run) if "input row" in result.name]
    assert "1 units of unknown size apart" in line


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
