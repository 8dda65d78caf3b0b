"""Remove the pictures, which may be personal data, from a finished run. Its rows stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from audit.errors import AuditError
from audit.record.ledger import Ledger
from audit.record.manifest_entries import PurgeEntry
from pipelines.console.numbers import now
from pipelines.engine.manifest import Manifest
from pipelines.engine.owner import Owner
from pipelines.review.pairs import PAIRS
from pipelines.runs.finished_run import finished
from pipelines.runs.written_files import due, remove_files
from pipelines.tables import mitigation, verdicts
from reports.purged import Keep, unfinished

# The columns that hold pictures. Working tables can hold copies of them, so a purge removes all working tables.
PICTURES = {"generations": "image", "evidence": "image", mitigation.MEASURED: "image", PAIRS: "image"}


@dataclass(frozen=True)
class Purged:
    """The result of a purge.

    Attributes:
        pictures: Number of pictures removed, per table.
        files: The files removed.
        left: The files not removed, each with the reason.
    """

    pictures: dict[str, int]
    files: list[str]
    left: list[str]


def purge(uri: str, keep: Keep) -> Purged:
    """Set pictures to null, remove the files that show them, and rewrite the report without them.

    The manifest records the purge before anything is removed. An interrupted purge is therefore known, and rerunning
    the command finishes it.

    Args:
        uri: The path or URI of the run.
        keep: "confirmed" keeps the pictures of confirmed captions and the evidence; "none" keeps nothing.

    Raises:
        AuditError: The run is not finished, another process is writing to it, a purge with another `keep` was
            interrupted, or a file cannot be removed.
    """
    with Owner(finished(uri)[0]) as owner:
        ledger, manifest, _ = finished(uri)  # another process may have changed it before we became the owner
        return _purge(ledger, manifest, keep, owner)


def _purge(ledger: Ledger, manifest: Manifest, keep: Keep, owner: Owner) -> Purged:
    from reports.html import write

    interrupted = unfinished(manifest.data)
    if interrupted not in (None, keep):
        hint = f"Finish it first: `crossaudit purge {ledger.uri} --keep {interrupted}`"
        raise AuditError(f"a purge with --keep {interrupted} was interrupted", where=ledger.uri, hint=hint)
    confirmed = _confirmed(ledger)
    stay = set(confirmed.to_pylist()) if keep == "confirmed" else set()

    def goes(caption_id: str) -> bool:
        return caption_id not in stay

    ledger.remove_work()
    if interrupted is None:
        removed = dict.fromkeys(PICTURES, 0)
        for table, _, _, going in _parts(ledger, keep, confirmed):
            removed[table] += pc.sum(going).as_py() or 0
        if manifest.data.purged and not any(removed.values()) and not due(manifest.data, goes):
            return Purged(removed, [], remove_files(ledger, manifest, goes).left)
        entry = PurgeEntry(keep=keep, begun=now(), finished=None, removed=removed, files=[])
        manifest.data.purged = [*manifest.data.purged, entry]
        manifest.write()
    ledger.sweep()
    for table, name, part, going in _parts(ledger, keep, confirmed):
        if pc.any(going).as_py():
            owner.check()
            ledger.write(table, name, _without(part, PICTURES[table], going))
    write(ledger.uri)
    files = remove_files(ledger, manifest, goes)
    entry = manifest.data.purged[-1]
    entry.files, entry.finished = entry.files + files.removed, now()
    manifest.write()
    return Purged(entry.removed, entry.files, files.left)


def _parts(ledger: Ledger, keep: str, confirmed: pa.Array) -> Iterator[tuple[str, str, pa.Table, pa.ChunkedArray]]:
    """Yield (table, part name, rows, mask of the pictures to remove) for every part that may hold pictures."""
    for table, column in PICTURES.items():
        for name, part in ledger.each(table):
            there = pc.is_valid(part[column])
            if keep == "none":
                yield table, name, part, there
            elif "caption_id" in part.column_names:
                yield table, name, part, pc.and_(there, pc.invert(pc.is_in(part["caption_id"], value_set=confirmed)))


def _confirmed(ledger: Ledger) -> pa.Array:
    return verdicts.confirmed(ledger, ["caption_id"])["caption_id"].combine_chunks()


def _without(part: pa.Table, column: str, going: pa.ChunkedArray) -> pa.Table:
    at = part.schema.get_field_index(column)
    field = part.schema.field(at)
    return part.set_column(at, field, pc.if_else(going, pa.scalar(None, field.type), part[column]))
