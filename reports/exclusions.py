"""Write RUN/exclusions.parquet: the rows to drop from the dataset, or to keep once, before the next training."""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from audit.errors import AuditError, UsageError
from audit.record.filesystem import open_filesystem, writing
from audit.record.manifest import RunManifest
from audit.schema import EXCLUSIONS, METADATA_KEY
from reports.stored_run import StoredRun, locate
from reports.tabular import check_suffix, open_writer
from reports.views import connect

POLICIES = ("drop", "dedup")
BATCH = 1 << 16

# Training images that were listed but could not be read: `errors` has their `file` and `row`.
UNREAD = """
select distinct left(sha256(file || chr(0) || "row"), 32) as image_id, file, "row", null::varchar as key,
       null::varchar as sha256
from errors where stage = 'embed' and "row" is not null
"""
CONFIRMED = """
create temp table confirmed as
select caption_id, caption, row_count, verdict, image_id, coalesce(family, caption_id) as family,
       case verdict when 'verbatim' then c.similarity else greatest(c.similarity, c.region_similarity) end as similarity
from verdicts v left join copied_images c using (caption_id, image_id) where verdict in ('verbatim', 'partial')
"""
# The images that captions copied, with their byte-identical and near-duplicate images; `original` is the image that
# was matched.
MEMORIZED = """
create temp table memorized as
with bytes as (
    select distinct i.sha256, c.* from copied_images c join images i using (image_id) where i.sha256 is not null),
every as (
    select image_id, image_id as original, caption_id, similarity, false as near from copied_images
    union all
    select i.image_id, b.image_id, b.caption_id, b.similarity, false
    from images i join bytes b using (sha256) where i.image_id <> b.image_id
    union all
    select k.image_id, c.image_id, c.caption_id, c.similarity, true
    from copied_images c join image_clusters o using (image_id) join image_clusters k using (cluster)
    where k.image_id <> c.image_id)
select e.*, c.caption, c.verdict, c.family from every e join confirmed c using (caption_id)
"""
# Pairs of families that share an image or a row: they form one group.
LINKS = """
select distinct a.family, b.family from memorized a join memorized b using (image_id) where a.family < b.family
union
select distinct c.family, m.family
from rows r join confirmed c using (caption_id) join memorized m on m.image_id = r.image_id where c.family <> m.family
union
select distinct a.family, b.family
from rows r join confirmed a using (caption_id) join rows s using (file, "row")
join confirmed b on b.caption_id = s.caption_id where a.family < b.family
"""
# One row per dataset row and caption; most dataset rows have one caption.
HITS = """
create temp table hits as
with best as (
    select distinct on (image_id) * from memorized
    order by image_id, original = image_id desc, near, similarity desc, caption_id, original)
select r.file, r."row", r.key, r.caption_id, r.image_id, c.caption_id is not null as by_caption,
       coalesce(c.family, b.family) as family, coalesce(c.verdict, b.verdict) as how, c.row_count,
       coalesce(c.image_id, b.original) as original, coalesce(c.similarity, b.similarity) as similarity,
       b.caption as other, b.near, b.image_id is not null as memorized
from rows r left join confirmed c using (caption_id) left join best b on b.image_id = r.image_id
where c.caption_id is not null or b.image_id is not null
"""
LISTED = """
create temp table listed as
with chosen as (
    select distinct on (file, "row") * from hits order by file, "row", by_caption desc, caption_id),
grouped as (
    select chosen.* replace (coalesce(case when memorized then k.cluster end, g.root, chosen.family) as family),
           v.verdict
    from chosen left join groups g on g.family = chosen.family join verdicts v on v.caption_id = chosen.caption_id
    left join image_clusters k on k.image_id = chosen.image_id)
select *, case when $policy = 'dedup' and row_number() over kin = 1 then 'keep' else 'drop' end as action,
       count(*) over kindred as members,
       first(file) over kin as kept_file, first("row") over kin as kept_row
from grouped window kin as (partition by family order by file, "row"), kindred as (partition by family)
"""
RESULT = """
with places as (
    select distinct on (image_id) * from images where image_id in (select image_id from listed)),
named as (
    select image_id, any_value(coalesce(key, "row"::varchar) || ' of ' || file) as name from images
    where image_id in (select original from listed union all select image_id from listed) group by image_id),
uses as (
    select image_id, count(distinct (file, "row")) as n from rows
    where image_id in (select image_id from listed) group by image_id),
gone as (select image_id, count(*) filter (action = 'drop') as n from listed group by image_id)
select l.file, l."row", l.key, l.caption_id, l.verdict, l.family, l.action,
       case when by_caption
            then 'caption reproduces ' || part || coalesce('image ' || o.name, 'image ' || l.original) || alike || '; '
                 || row_count || case row_count when 1 then ' row carries it' else ' rows carry it' end
            when l.image_id = l.original
            then part || 'image ' || coalesce(o.name, l.original) || ' is reproduced by another caption: ' || text
            else 'image ' || coalesce(i.name, l.image_id)
                 || case when near then ' is a near duplicate of image ' else ' has the bytes of image ' end
                 || coalesce(o.name, l.original) || ', ' || part || 'which another caption reproduces: ' || text end
       || case when $policy = 'drop' then ''
               when action = 'drop' then '; row ' || kept_row || ' of ' || kept_file || ' is kept'
               when members = 1 then '; the only row, kept'
               else '; the first of ' || members || ' rows, kept' end as why,
       l.image_id,
       case when action = 'keep' or uses.n = gone.n then p.file end as image_file,
       case when action = 'keep' or uses.n = gone.n then p."row" end as image_row
from (select *, case how when 'partial' then 'a region of ' else '' end as part,
             coalesce(printf(' (similarity %.2f)', similarity), '') as alike,
             '"' || left(other, 80) || case when length(other) > 80 then '…' else '' end || '"' || alike as text
      from listed) l
left join named o on o.image_id = l.original left join named i on i.image_id = l.image_id
left join places p on p.image_id = l.image_id
left join uses on uses.image_id = l.image_id left join gone on gone.image_id = l.image_id
order by l.file, l."row"
"""
# Each query returns two counts that must be equal; the text describes what is wrong if they are not.
PROOFS = (
    (
        "a row and caption occur twice in `rows`, or a caption in `verdicts`",
        """select (select count(*) from hits), (select count(distinct (file, "row", caption_id)) from hits)
               + (select count(*) from listed) - (select count(distinct (file, "row")) from listed)""",
    ),
    (
        "the rows of the confirmed captions do not add up to their row_count",
        """select (select count(*) from hits where by_caption), (select coalesce(sum(row_count), 0) from confirmed)""",
    ),
)
# Input rows of each caption file (null if it was not read completely); images of each tar and Parquet file.
FILES = """
select file, case when bool_and(n is not null) and not $sampled then sum(n)::bigint end from (
    select file, count(distinct "row") as n from rows group by file
    union all select file, "rows" from errors where stage = 'ingest' and file is not null)
group by file order by file
"""
_PACKED = "file like '%.tar' or file like '%.parquet'"
IMAGE_FILES = f"select file, count(*) from images where {_PACKED} group by file order by file"
# Image files per folder; the root folder of the images is ''.
FOLDERS = f"""
select regexp_replace(file, '/?[^/]*$', '') as folder, count(*) from images where not ({_PACKED})
group by folder order by folder
"""
NO_ROW = """
select count(distinct image_id) from memorized
where image_id not in (select image_id from rows where image_id is not null)
"""


@dataclass(frozen=True)
class Exported:
    """Summarize an exclusions file.

    Attributes:
        path: The file.
        dropped: Rows to drop.
        kept: Rows to keep.
        captions: Confirmed captions.
        groups: Groups of rows.
        without_row: Reproduced images that no row names as its own, as in unpaired datasets.
    """

    path: str
    dropped: int
    kept: int
    captions: int
    groups: int
    without_row: int


def write_exclusions(run: str | Path, policy: str = "drop", out: str | None = None) -> Exported:
    """Write every dataset row with a confirmed caption or a reproduced image (schema EXCLUSIONS).

    Args:
        run: The finished run.
        policy: `drop` drops all these rows; `dedup` keeps the first row of each group. A group consists of families
            that share a row or an image.
        out: The file, by default RUN/exclusions.parquet. Its suffix sets the format: .parquet, .csv or .jsonl.
            `crossaudit clean` reads Parquet.

    Returns:
        A summary of what was written.

    Raises:
        AuditError: The run is not finished, or its tables do not add up.
        UsageError: The suffix of `out` is unknown, or `out` exists and is not an exclusions file.
    """
    suffix = ".parquet" if out is None else check_suffix(out)
    located = locate(run)
    manifest = located.manifest()
    if not manifest.finished:
        raise AuditError("the run is not finished", where=str(run), hint="Finish it with `crossaudit run` first.")
    filesystem, path = _place(located, out)
    with connect(run) as connection:
        try:
            _list(connection, located, manifest, policy)
            for wrong, sql in PROOFS:
                [(found, expected)] = connection.execute(sql).fetchall()
                if found != expected:
                    ask = "`crossaudit check` shows what is wrong."
                    raise AuditError(f"{wrong}: {found:,} and {expected:,}", where=str(run), hint=ask)
            sampled = bool(manifest.accounting.sampled_out)
            captions = manifest.resolved.get("captions", {})
            notes = {
                "policy": policy,
                "caption": captions.get("caption"),
                "files": dict(connection.execute(FILES, {"sampled": sampled}).fetchall()),
                "delimiter": captions.get("delimiter"),
                "images": dict(connection.execute(IMAGE_FILES).fetchall()),
                "folders": dict(connection.execute(FOLDERS).fetchall()),
                "shared": _shared(manifest),
            }
            result = connection.sql(RESULT, params={"policy": policy}).to_arrow_reader(BATCH)
            _write(result, filesystem, path, suffix, {METADATA_KEY: json.dumps(notes).encode()})
            return _summary(connection, path)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise AuditError(str(error).strip(), where=str(run)) from error


def _list(connection: duckdb.DuckDBPyConnection, run: StoredRun, manifest: RunManifest, policy: str) -> None:
    """Create the temporary table `listed` with one row per exclusion."""
    embeddings = f"embeddings_{manifest.embedders[0]}"
    read = (
        f'select image_id, file, "row", key, sha256 from "{embeddings}" union all '
        if embeddings in run.tables()
        else ""
    )
    connection.execute(f"create temp view images as {read}{UNREAD}")
    connection.execute(CONFIRMED)
    connection.execute(MEMORIZED)
    roots = joined(connection.execute(LINKS).fetchall())
    names = {"family": pa.array(list(roots), pa.string()), "root": pa.array(list(roots.values()), pa.string())}
    connection.register("groups", pa.table(names))
    connection.execute(HITS)
    connection.execute(LISTED, {"policy": policy})


def _shared(manifest: RunManifest) -> list[str]:
    """Return the files from which both captions and images were read."""
    named: dict[str, set[tuple[str, str]]] = {kind: set[tuple[str, str]]() for kind in ("captions", "images")}
    for item in manifest.inputs:
        if item.kind in named:
            named[item.kind].add((item.file, item.name))
    return sorted(name for _, name in named["captions"] & named["images"])


def joined(links: list[tuple[str, str]]) -> dict[str, str]:
    """Map each name to the smallest name that it is connected with."""
    root: dict[str, str] = {}

    def find(name: str) -> str:
        while root.setdefault(name, name) != name:
            name = root[name]
        return name

    for one, other in links:
        smaller, larger = sorted((find(one), find(other)))
        root[larger] = smaller
    return {name: find(name) for name in root}


def _summary(connection: duckdb.DuckDBPyConnection, path: str) -> Exported:
    counts = """select count(*) filter (action = 'drop'), count(*) filter (action = 'keep'),
                       (select count(*) from confirmed), count(distinct family) from listed"""
    [(dropped, kept, captions, groups)] = connection.execute(counts).fetchall()
    [(without_row,)] = connection.execute(NO_ROW).fetchall()
    return Exported(path, dropped, kept, captions, groups, without_row)


def _place(run: StoredRun, out: str | None) -> tuple[fs.FileSystem, str]:
    """Return where to write the file. Raises UsageError if something other than exclusions is there."""
    if out is None:
        return run.filesystem, f"{run.root}/exclusions.parquet"
    filesystem, path = open_filesystem(out)
    try:
        kind = filesystem.get_file_info(path).type
        folder = filesystem.get_file_info(posixpath.dirname(path)).type
    except OSError as error:
        raise AuditError(f"cannot be opened: {error}", where=out) from error
    if folder == fs.FileType.File:
        raise UsageError("the parent of this path is a file", where=out, hint="Give another --out.")
    if kind != fs.FileType.NotFound and not (kind == fs.FileType.File and _is_ours(filesystem, path)):
        raise UsageError("already exists and is not an exclusions file", where=out, hint="Give another --out.")
    return filesystem, path


def _is_ours(filesystem: fs.FileSystem, path: str) -> bool:
    """Check whether a file is an earlier export, by its Parquet metadata or by the column names in line 1."""
    try:
        if path.lower().endswith(".parquet"):
            return METADATA_KEY in (pq.read_schema(path, filesystem=filesystem).metadata or {})
        with filesystem.open_input_stream(path) as file:
            first = file.read(1 << 12).decode(errors="replace").partition("\n")[0]
    except (pa.ArrowException, OSError, ValueError):
        return False
    return first == ",".join(f'"{name}"' for name in EXCLUSIONS.names) or all(
        f'"{name}": ' in first for name in ("file", "row", "action", "why")
    )


def _write(
    result: pa.RecordBatchReader, filesystem: fs.FileSystem, path: str, suffix: str, notes: dict[bytes, bytes]
) -> None:
    layout = EXCLUSIONS.with_metadata(notes)
    try:
        with writing(filesystem, path) as sink:
            file = open_writer(suffix, sink, layout)
            for batch in result:
                file.write_batch(batch.cast(layout))
            file.close()
    except OSError as error:
        raise AuditError(f"cannot be written: {error}", where=path) from error
