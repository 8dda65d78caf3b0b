"""`crossaudit purge`: the pictures of a finished run go, which may be personal data; its rows stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit.errors import AuditError
from audit.record.ledger import Ledger
from pipelines.console.progress import now
from pipelines.engine.manifest import Manifest
from pipelines.engine.owner import Owner
from pipelines.runs.finished_run import finished
from pipelines.runs.written_files import due, remove_files
from pipelines.tables import mitigation, verdicts
from reports.purged import unfinished

# The columns that hold pictures; a working table of `mitigate` holds training images once more.
PICTURES = {"generations": "image", "evidence": "image", mitigation.MEASURED: "image", mitigation.CAPTIONS: "reference"}


@dataclass(frozen=True)
class Purged:
    """What a purge did: pictures removed by table, files removed, and files left, each with the reason."""

    pictures: dict[str, int]
    files: list[str]
    left: list[str]


def purge(uri: str, keep: str) -> Purged:
    """Make pictures null, remove the files that show them, and write the report without them.

    `keep`: confirmed (the pictures of confirmed captions and the evidence stay) or none. The manifest says that it has
    begun before anything is removed, so that an interrupted purge is known, and finished by the same command. Raises
    AuditError if the run is not finished, if another process writes into it, if another purge of it was interrupted,
    or if a file cannot be removed.
    """
    with Owner(finished(uri)[0]) as owner:
        ledger, manifest, _ = finished(uri)  # whoever wrote last may have changed it
        return _purge(ledger, manifest, keep, owner)


def _purge(ledger: Ledger, manifest: Manifest, keep: str, owner: Owner) -> Purged:
    from reports.html import write

    interrupted = unfinished(manifest.data)
    if interrupted not in (None, keep):
        hint = f"`crossaudit purge {ledger.uri} --keep {interrupted}` finishes it."
        raise AuditError(f"a purge with --keep {interrupted} was interrupted", where=ledger.uri, hint=hint)
    confirmed = _confirmed(ledger)
    stay = set(confirmed.to_pylist()) if keep == "confirmed" else set()
    purges: list[dict[str, Any]] = manifest.data.setdefault("purged", [])
    if interrupted is None:
        removed = dict.fromkeys(PICTURES, 0)
        for table, _, _, going in _parts(ledger, keep, confirmed):
            removed[table] += pc.sum(going).as_py() or 0
        if purges and not any(removed.values()) and not due(manifest.data, lambda caption_id: caption_id not in stay):
            return Purged(removed, [], remove_files(ledger, manifest, lambda caption_id: caption_id not in stay).left)
        purges.append({"keep": keep, "begun": now(), "finished": None, "removed": removed, "files": []})
        manifest.write()
    ledger.sweep()
    for table, name, part, going in _parts(ledger, keep, confirmed):
        if pc.any(going).as_py():
            owner.check()
            ledger.write(table, name, _without(part, PICTURES[table], going))
    write(ledger.uri)
    files = remove_files(ledger, manifest, lambda caption_id: caption_id not in stay)
    purges[-1]["files"] += files.removed
    purges[-1]["finished"] = now()
    manifest.write()
    return Purged(purges[-1]["removed"], purges[-1]["files"], files.left)


def _parts(ledger: Ledger, keep: str, confirmed: pa.Array) -> Iterator[tuple[str, str, pa.Table, pa.ChunkedArray]]:
    """(table, part, its rows, which of their pictures go) of every part that may hold pictures."""
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
