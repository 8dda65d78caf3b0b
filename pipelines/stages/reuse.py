"""Reuse: instead of embedding, take vectors of an index or earlier run if this run would compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from audit.errors import AuditError, first_line
from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from audit.record.manifest_entries import InputFile
from pipelines.engine.context import Run
from pipelines.engine.manifest import NAME, stored
from pipelines.tables import embeddings, training_images

THREADS = 8


def run(run: Run) -> None:
    """Copy the vectors at `index.path` into the run, if there are training images."""
    if run.config.images is None:
        return
    names = run.config.confirm.embedders
    tables = [table(name) for table in (embeddings.stored_table, embeddings.table) for name in names]
    with run.stage("embed", "images") as stage:
        if not run.manifest.finished or _lost(run, tables):
            _take(run, tables)
        stage.rows_in = training_images.listed(run.ledger)
        stage.rows_out = embeddings.refreshed(run)


def check(run: Run) -> None:
    """Raise AuditError unless the vectors at `index.path` are those that this run would compute.

    The models must be loaded, and the manifest must have the fingerprints of the input files.
    """
    if run.config.images is None:
        return
    source, index = _index(run)
    differences = [*_options(run, index), *_embedders(run, index), *_files(run, index)]
    if differences:
        more = f", and {len(differences) - 1} more differences" if differences[1:] else ""
        raise AuditError(
            f"these are not the vectors that this run needs: {differences[0]}{more}",
            where=source.uri,
            hint="Build a new index (`crossaudit index AUDIT.YAML --out ELSEWHERE`), or remove index.path.",
        )


def _index(run: Run) -> tuple[Ledger, RunManifest]:
    """Return the ledger at `index.path` and its manifest."""
    path = run.config.index.path
    assert path is not None
    source = Ledger(path)
    index = stored(source)
    if index is None:
        hint = "Build one with `crossaudit index AUDIT.YAML`."
        raise AuditError(f"no {NAME}: there is no index at this path", where=path, hint=hint)
    if index.finished is None:
        raise AuditError("the index is not finished", where=path, hint="Rerun the command that started it to resume.")
    return source, index


def _options(run: Run, index: RunManifest) -> Iterator[str]:
    theirs, ours = index.resolved["images"] or {}, run.manifest.data.resolved["images"]
    for key in ("crop", "exif", "column"):
        if theirs.get(key) != ours[key]:
            yield f"images.{key} is {theirs.get(key)} in the index and {ours[key]} in this run"


def _embedders(run: Run, index: RunManifest) -> Iterator[str]:
    for name in run.config.confirm.embedders:
        theirs, ours = index.models.get(name), run.manifest.data.models[name]
        if theirs is None or embeddings.table(name) not in index.parts:
            yield f"the index has no vectors from the embedder {name}"
        elif theirs != ours:
            part = next(part for part in (*ours, *theirs) if theirs.get(part) != ours.get(part))
            yield (
                f"{part} of the embedder {name} is {_short(theirs.get(part))} in the index and "
                f"{_short(ours.get(part))} in this run"
            )


def _files(run: Run, index: RunManifest) -> Iterator[str]:
    theirs, ours = (_of_images(inputs) for inputs in (index.inputs, run.manifest.data.inputs))
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            how = (
                "is not in the index"
                if name not in theirs
                else "is only in the index"
                if name not in ours
                else "has changed since"
            )
            yield f"the image file {name} {how}"


def _of_images(inputs: list[InputFile]) -> dict[str, str]:
    """Map the names of image files to their fingerprints. Their locations may differ."""
    return {item.name: item.sha256 for item in inputs if item.kind == "images"}


def _short(digest: str | None) -> str:
    return "missing" if digest is None else digest[:12] if len(digest) == 64 else digest


def _lost(run: Run, tables: list[str]) -> bool:
    """Check whether parts are missing that the run once had."""
    known = run.manifest.data.parts
    return any(
        known.get(table, {}).keys() - {f"{part}.parquet" for part in run.ledger.parts(table)} for table in tables
    )


def _take(run: Run, tables: list[str]) -> None:
    """Copy missing parts into the run, `errors` first, because they record which images have no vector."""
    source, index = _index(run)
    todo = []
    for table in ("errors", *tables):
        here = set(run.ledger.parts(table))
        for file, rows in sorted(index.parts.get(table, {}).items()):
            part = file.removesuffix(".parquet")
            # This run lists its images itself, so it finds the errors of the listing again.
            if part not in here and (table != "errors" or part.startswith("embeddings_")):
                todo.append((table, part, rows))
    if not todo:
        return
    run.manifest.reopen()
    total = sum(rows for table, _, rows in todo if table == tables[-1])
    with run.progress.step("embed: vectors from the index", total, "images") as count:

        def copy(item: tuple[str, str, int]) -> tuple[str, str, int]:
            _copy(run.ledger, source, *item)
            return item

        with ThreadPoolExecutor(THREADS) as threads:
            for table, part, rows in threads.map(copy, todo):
                run.manifest.part(table, part, rows)
                count.advance(rows if table == tables[-1] else 0, 0)
                run.manifest.progress(count.numbers)


def _copy(ledger: Ledger, source: Ledger, table: str, part: str, rows: int) -> None:
    where = source.path(table, f"{part}.parquet")
    try:
        found = source.rows(table, part)
    except (AuditError, OSError, pa.ArrowException) as error:
        what = f"cannot be read: {first_line(error.__cause__ or error)}"
        raise AuditError(what, where=where, hint="Build the index again.") from error
    if found != rows:
        what = f"has {found:,} rows, but the manifest of the index lists {rows:,}"
        raise AuditError(what, where=where, hint="Build the index again.")
    ledger.take(source, table, part)
