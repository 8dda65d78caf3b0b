"""Check that the tables of a run agree with each other and with its manifest (docs/reference/manifest.md)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from audit.record.manifest import RunManifest
from audit.record.parquet import parquet_file
from reports.purged import kept, note, unfinished
from reports.rules import CONFIRMED, WORDS, embedders_of, rules_of
from reports.stored_run import StoredRun, locate
from reports.views import connect

# A finished run gets rows of this table whenever a rater answers.
REVIEWS = "reviews"


@dataclass(frozen=True)
class Check:
    """Hold the result of checking one statement about a run.

    Attributes:
        name: The statement.
        ok: Whether it holds.
        detail: The figures, or what is wrong.
        warning: Whether the reader must know something although the statement holds.
    """

    name: str
    ok: bool
    detail: str
    warning: bool = False


def check(run: str | Path) -> list[Check]:
    """Check everything that must hold for a run and return the results in a fixed order.

    Raises AuditError only if the run cannot be opened at all.
    """
    located = locate(run)
    manifest = located.manifest()
    parts = _parts(located, manifest)
    if not parts.ok:
        return [parts]  # if a file is missing or unreadable, every count below would only repeat that
    with connect(run) as connection:
        try:
            return [parts, *counts(connection, manifest)]
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            return [parts, Check("every table can be read", False, str(error).strip())]


def counts(connection: duckdb.DuckDBPyConnection, manifest: RunManifest) -> Iterator[Check]:
    """Check that the tables of a connection agree with each other and with a manifest, one statement at a time."""
    audited = manifest.kind != "index"
    if audited:
        yield _input_rows(connection, manifest)
    yield _failures(connection, manifest)
    yield from _embedded(connection, manifest)
    if not audited:
        return
    for name, counted, sql in rules_of(manifest):
        n = _count(connection, sql)
        yield Check(name, n == 0, f"{n:,} {counted}")
    yield from _purged(connection, manifest)
    yield from _thresholds(manifest)
    words = (*WORDS, ("matches", "embedder", tuple(embedders_of(manifest))))
    yield from (_words(connection, *known) for known in words)


def _parts(run: StoredRun, manifest: RunManifest) -> Check:
    """Check that every file in the manifest exists with as many rows as listed, and that every file is listed."""
    name = "every part is listed in the manifest, and whole"
    listed = {(table, part): rows for table, parts in manifest.parts.items() for part, rows in parts.items()}
    present = {(table, file.base_name): file for table, files in run.tables().items() for file in files}
    wrong = [f"{table}/{part} is missing" for table, part in sorted(listed.keys() - present.keys())]
    for (table, part), file in present.items():
        try:
            rows = parquet_file(run.filesystem, file).metadata.num_rows
        except (pa.ArrowException, OSError):
            wrong.append(f"{table}/{part} cannot be read")
            continue
        if table == REVIEWS:
            continue  # raters may answer at any time; rules relate the answers to the pairs
        if (table, part) not in listed:
            wrong.append(f"{table}/{part} is not listed")
        elif rows != listed[table, part]:
            wrong.append(f"{table}/{part} has {rows:,} rows, the manifest says {listed[table, part]:,}")
    total = sum(listed.values())
    return Check(name, not wrong, _some(wrong) if wrong else f"{len(listed):,} parts, {total:,} rows")


def _input_rows(connection: duckdb.DuckDBPyConnection, manifest: RunManifest) -> Check:
    # A row with several captions counts as one row.
    rows = _count(connection, 'select count(*) from (select distinct file, "row" from rows)')
    failed = _count(connection, "select coalesce(sum(rows), 0)::bigint from errors where stage = 'ingest'")
    unknown = _count(connection, "select count(*) from errors where stage = 'ingest' and rows is null")
    given, sampled_out = manifest.accounting.input_rows, manifest.accounting.sampled_out
    detail = f"{rows:,} rows + {failed:,} in errors + {sampled_out:,} sampled out of {given} input rows"
    if pairs := manifest.accounting.pairs:
        detail += f"; {pairs.paired:,} of {pairs.rows:,} are paired with their own image"
    if unknown:
        detail += f"; plus {unknown:,} errors that cover an unknown number of rows"
    return Check(
        "every input row is in `rows`, in `errors` or sampled out", rows + failed + sampled_out == given, detail
    )


def _failures(connection: duckdb.DuckDBPyConnection, manifest: RunManifest) -> Check:
    said = {stage: entry.errors for stage, entry in manifest.stages.items()}
    found = dict(connection.execute("select stage, count(*) from errors group by all").fetchall())
    wrong = [
        f"{found.get(stage, 0):,} of {stage}, the manifest says {said.get(stage, 0):,}"
        for stage in sorted(said.keys() | found.keys())
        if said.get(stage, 0) != found.get(stage, 0)
    ]
    detail = _some(wrong) if wrong else f"{sum(found.values()):,} rows"
    return Check("`errors` has as many rows per stage as the manifest says", not wrong, detail)


def _embedded(connection: duckdb.DuckDBPyConnection, manifest: RunManifest) -> list[Check]:
    """Check for each embedder that every listed image has exactly one vector or a row in `errors`."""
    name, found = "every training image has a vector from every embedder, or is in `errors`", []
    lost = """(select distinct left(sha256(file || chr(0) || "row"), 32) as image_id from errors
               where stage = 'embed' and "row" is not null)"""
    failed = _count(connection, f"select count(*) from {lost}")
    for embedder in embedders_of(manifest):
        listed = manifest.stages["embed"].rows_in
        table = f'"embeddings_{embedder}"'
        vectors, images = connection.execute(f"select count(*), count(distinct image_id) from {table}").fetchall()[0]
        both = _count(connection, f"select count(*) from {table} semi join {lost} using (image_id)")
        detail = f"{vectors:,} vectors from {embedder} + {failed:,} in errors, of {listed:,} images"
        if vectors != images or both:
            detail += f"; {vectors - images:,} twice, {both:,} in both"
        found.append(Check(name, vectors == images and not both and vectors + failed == listed, detail))
        found += _stored(connection, manifest, embedder)
    return found


def _stored(connection: duckdb.DuckDBPyConnection, manifest: RunManifest, embedder: str) -> list[Check]:
    """Check that every image with a second vector (as stored) occurs once and also has a first vector."""
    table = f"embeddings_{embedder}_stored"
    if table not in manifest.parts:
        return []
    vectors, images = connection.execute(f'select count(*), count(distinct image_id) from "{table}"').fetchall()[0]
    strange = _count(connection, f'select count(*) from "{table}" anti join "embeddings_{embedder}" using (image_id)')
    detail = f"{vectors:,} vectors of images as stored; {vectors - images:,} twice, {strange:,} not upright"
    name = "every image that is also compared as stored has one such vector and one upright vector"
    return [Check(name, vectors == images and not strange, detail)]


def _purged(connection: duckdb.DuckDBPyConnection, manifest: RunManifest) -> list[Check]:
    """Check for a purged run that the pictures are gone and that the purge is complete."""
    removed, again = note(manifest), unfinished(manifest)
    if removed is None:
        return []
    kept_ids = f"select caption_id from ({CONFIRMED})" if kept(manifest) == "confirmed" else "select null where false"
    left = _count(
        connection,
        f"select count(image) from generations where caption_id not in ({kept_ids})",
    )
    if kept(manifest) == "none":
        left += _count(connection, "select count(image) from evidence")
    detail = f"{removed}; {left:,} pictures are left that should be gone"
    if again:
        detail += f"; interrupted: rerun `crossaudit purge --keep {again}` to finish it"
    return [Check("the pictures that a purge removes are gone", left == 0 and again is None, detail)]


def _thresholds(manifest: RunManifest) -> list[Check]:
    """Check that no threshold of the deciding embedder is below its floor, and pass on its notes as warnings."""
    found = []
    for embedder, kinds in list(manifest.thresholds.items())[:1]:
        for kind, limit in kinds.items():
            value, floor = limit.value, limit.floor
            normalised = manifest.resolved["confirm"].get(embedder, {}).get("background") is not None
            ok = value is None or normalised or (floor is not None and value >= floor)
            shown = "none" if value is None else f"{value:.3f}"
            detail = f"{shown} (source: {limit.source}), floor {floor}, {limit.used} control captions"
            name = f"the {kind} threshold of {embedder} is not below the embedder's floor"
            found.append(Check(name, ok, "; ".join([detail, *limit.notes]), warning=bool(limit.notes)))
    return found


def _words(connection: duckdb.DuckDBPyConnection, table: str, column: str, words: tuple[str | None, ...]) -> Check:
    found = connection.execute(f'select distinct "{column}" from {table}').fetchall()
    strange = sorted(str(word) for (word,) in found if word not in words)
    detail = f"unknown: {_some(strange)}" if strange else f"known: {', '.join(word for word in words if word)}"
    return Check(f"{table}.{column} has only known values", not strange, detail)


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    [[n]] = connection.execute(sql).fetchall()
    return int(n)


def _some(items: list[str], most: int = 5) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most:,} more" if len(items) > most else "")
