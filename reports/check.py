"""Proof that a run's accounting closes (docs/design.md, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from audit.errors import AuditError
from audit.schema import KEEP_WORDS, MITIGATION_GROUPS, PURPOSES, RISK_WORDS, STATUS_WORDS, VERDICT_WORDS
from reports.views import Run, connect, open_run


@dataclass(frozen=True)
class Check:
    """One statement about a run; `detail` gives the figures, or what is wrong."""

    name: str
    ok: bool
    detail: str


# Name, what is counted, and the query that counts it: none may be left.
VIOLATIONS = (
    (
        "every caption occurs once in `captions`",
        "captions that occur twice",
        "select count(*) from (from captions select caption_id group by all having count(*) > 1)",
    ),
    (
        "every row has its caption, and every caption as many rows as copies",
        "captions whose rows and copies differ",
        """select count(*) from (from rows select caption_id, count(*) as n group by all) r
           full join captions c using (caption_id) where r.n is distinct from c.copies""",
    ),
    (
        "every caption has exactly one verdict",
        "captions without a verdict, with two, or verdicts without a caption",
        """select count(*) from (from verdicts select caption_id, count(*) as n group by all) v
           full join captions c using (caption_id) where c.caption_id is null or v.n is distinct from 1""",
    ),
    (
        "every verdict carries the caption and the copies of its caption",
        "verdicts that differ from their caption",
        """select count(*) from verdicts v join captions c using (caption_id)
           where v.caption is distinct from c.caption or v.copies is distinct from c.copies""",
    ),
    (
        "every confirmed caption names a training image",
        "verbatim or partial verdicts without one",
        "select count(*) from verdicts where verdict in ('verbatim', 'partial') and image_id is null",
    ),
    (
        "every error verdict says why",
        "error verdicts without a message",
        "select count(*) from verdicts where verdict = 'error' and error is null",
    ),
    (
        "every setting of the mitigation has the same captions and seeds, or they are in `errors`",
        "captions, seeds and settings that are missing or occur twice",
        """with units as (select distinct "group", caption_id, seed from mitigation),
                settings as (select distinct "group", bos_scale, keep from mitigation),
                failed as (select distinct caption_id from errors where stage = 'mitigate'),
                found as (select "group", caption_id, seed, bos_scale, keep, count(*) as n from mitigation group by all)
           select count(*) from units join settings using ("group")
           left join found using ("group", caption_id, seed, bos_scale, keep) left join failed using (caption_id)
           where found.n > 1 or (found.n is null and failed.caption_id is null)""",
    ),
    (
        "every image is in one cluster, which has as many as it says",
        "images that are in two, or in one of another size",
        """select count(*) from (select size, count(*) over (partition by image_id) as times,
                                        count(*) over (partition by cluster) as members from image_clusters)
           where times > 1 or size <> members""",
    ),
    (
        "no generation occurs twice",
        "captions, purposes and seeds that occur twice",
        "select count(*) from (from generations select caption_id, purpose, seed group by all having count(*) > 1)",
    ),
)
WORDS = (
    ("verdicts", "verdict", VERDICT_WORDS),
    ("verdicts", "risk", RISK_WORDS),
    ("generations", "purpose", PURPOSES),
    ("generations", "status", STATUS_WORDS),
    ("screen", "status", STATUS_WORDS),
    ("mitigation", "group", MITIGATION_GROUPS),
    ("mitigation", "keep", KEEP_WORDS),
)


def check(run: str | Path) -> list[Check]:
    """All statements about the run that must hold, in a fixed order; AuditError only if it cannot be opened at all."""
    located = open_run(run)
    manifest = located.manifest()
    parts = _parts(located, manifest)
    if not parts.ok:
        return [parts]  # with a file unreadable or missing every count below would only say so again
    with connect(run) as connection:
        try:
            return [parts, *_counts(connection, manifest)]
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            return [parts, Check("every table can be read", False, str(error).strip())]


def _counts(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> list[Check]:
    embedded = _embedded(connection, manifest)
    if manifest.get("kind") == "index":
        return embedded
    results = [_input_rows(connection, manifest), *embedded]
    for name, counted, sql in VIOLATIONS:
        n = _count(connection, sql)
        results.append(Check(name, n == 0, f"{n:,} {counted}"))
    results += [_words(connection, *words) for words in WORDS]
    return [*results, _screened(connection, manifest), _generated(connection, manifest)]


def _parts(run: Run, manifest: dict[str, Any]) -> Check:
    """Every file that the manifest lists is there with its rows, and every file that is there is listed."""
    name = "every part is listed in the manifest, and whole"
    listed = {(table, part): rows for table, parts in manifest.get("parts", {}).items() for part, rows in parts.items()}
    present = {(table, path.rpartition("/")[2]): path for table, paths in run.tables().items() for path in paths}
    wrong = [f"{table}/{part} is missing" for table, part in sorted(listed.keys() - present.keys())]
    for (table, part), path in present.items():
        try:
            rows = pq.read_metadata(path, filesystem=run.filesystem).num_rows
        except (pa.ArrowException, OSError):
            wrong.append(f"{table}/{part} cannot be read")
            continue
        if (table, part) not in listed:
            wrong.append(f"{table}/{part} is not listed")
        elif rows != listed[table, part]:
            wrong.append(f"{table}/{part} has {rows:,} rows, the manifest says {listed[table, part]:,}")
    total = sum(listed.values())
    return Check(name, not wrong, _some(wrong) if wrong else f"{len(listed):,} parts, {total:,} rows")


def _input_rows(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> Check:
    # A row may have several captions: it is one row all the same.
    rows = _count(connection, 'select count(*) from (select distinct file, "row" from rows)')
    failed = _count(connection, "select coalesce(sum(rows), 0)::bigint from errors where stage = 'ingest'")
    unknown = _count(connection, "select count(*) from errors where stage = 'ingest' and rows is null")
    accounting = manifest.get("accounting", {})
    given, sampled_out = accounting.get("input_rows"), accounting.get("sampled_out", 0)
    detail = f"{rows:,} rows + {failed:,} in errors + {sampled_out:,} sampled out of {given} input rows"
    if unknown:
        detail += f"; {unknown:,} units of unknown size apart"
    return Check(
        "every input row is in `rows`, in `errors` or sampled out", rows + failed + sampled_out == given, detail
    )


def _embedded(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> list[Check]:
    """For each embedder: every image that was listed has one vector, or a row of `errors`."""
    listed = manifest.get("stages", {}).get("embed", {}).get("rows_in")
    if listed is None:
        return []
    name, found = "every training image has a vector of every embedder, or is in `errors`", []
    lost = """(select distinct left(sha256(file || chr(0) || "row"), 32) as image_id from errors
               where stage = 'embed' and "row" is not null)"""
    failed = _count(connection, f"select count(*) from {lost}")
    for embedder in manifest["resolved"]["confirm"]["embedders"]:
        table = f'"embeddings_{embedder}"'
        vectors, images = connection.execute(f"select count(*), count(distinct image_id) from {table}").fetchall()[0]
        both = _count(connection, f"select count(*) from {table} semi join {lost} using (image_id)")
        detail = f"{vectors:,} vectors of {embedder} + {failed:,} in errors of {listed:,} images"
        if vectors != images or both:
            detail += f"; {vectors - images:,} twice, {both:,} in both"
        found.append(Check(name, vectors == images and not both and vectors + failed == listed, detail))
    return found


def _words(connection: duckdb.DuckDBPyConnection, table: str, column: str, words: tuple[str, ...]) -> Check:
    found = connection.execute(f'select distinct "{column}" from {table}').fetchall()
    strange = sorted(str(word) for (word,) in found if word not in words)
    detail = f"unknown: {_some(strange)}" if strange else f"among {', '.join(words)}"
    return Check(f"{table}.{column} has known words only", not strange, detail)


def _screened(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> Check:
    seeds = _seeds(manifest, "screen")
    sql = f"""
        with expected as (select caption_id, unnest({seeds}) as seed from captions),
             found as (from screen select caption_id, seed, count(*) as n group by all),
             failed as (select distinct caption_id from errors where stage = 'screen')
        select count(*) from expected full join found using (caption_id, seed)
        left join failed on expected.caption_id = failed.caption_id
        where found.n > 1 or expected.caption_id is null or (found.n is null and failed.caption_id is null)"""
    n = _count(connection, sql)
    detail = f"{n:,} captions and seeds missing without a row of `errors`, twice, or of no caption; seeds {seeds}"
    return Check("every caption was screened once with every seed, or is in `errors`", n == 0, detail)


def _generated(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> Check:
    seeds = _seeds(manifest, "generate")
    sql = f"""
        with expected as (select caption_id, unnest({seeds}) as seed from scores where selected_by is not null),
             found as (from generations select caption_id, seed where purpose = 'discover'),
             failed as (select distinct caption_id from errors where stage = 'generate')
        select count(*) from expected full join found using (caption_id, seed)
        left join failed on expected.caption_id = failed.caption_id
        where expected.caption_id is null or (found.caption_id is null and failed.caption_id is null)"""
    n = _count(connection, sql)
    detail = f"{n:,} selected captions and seeds missing without a row of `errors`, or not selected; seeds {seeds}"
    return Check("every selected caption was generated with every seed, or is in `errors`", n == 0, detail)


def _seeds(manifest: dict[str, Any], stage: str) -> list[int]:
    try:
        return [int(seed) for seed in manifest["seeds"][stage]]
    except (KeyError, TypeError, ValueError) as error:
        raise AuditError(f"no list of seeds under seeds.{stage}", where="manifest.json") from error


def _count(connection: duckdb.DuckDBPyConnection, sql: str) -> int:
    [[n]] = connection.execute(sql).fetchall()
    return int(n)


def _some(items: list[str], most: int = 5) -> str:
    return "; ".join(items[:most]) + (f"; and {len(items) - most:,} more" if len(items) > most else "")
