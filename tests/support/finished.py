"""Write a finished run for tests of commands: its tables and manifest, without running an audit."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from audit.record.ledger import Ledger
from audit.record.manifest_entries import PurgeEntry
from audit.schema import CAPTIONS, VERDICTS
from pipelines.configuration.settings import load_config
from pipelines.console.numbers import now
from pipelines.engine.manifest import Manifest


def finish_run(config: Path, *verdicts: str) -> Ledger:
    """Write the run of a configuration as if it had finished and been purged, with one caption per verdict."""
    settings, given = load_config(config)
    ledger = Ledger(settings.out)
    manifest = Manifest.open(ledger, settings, given)
    captions = [{"caption_id": word, "caption": f"a {word} caption", "row_count": 1} for word in verdicts]
    ledger.write("captions", "00000", pa.Table.from_pylist(captions, schema=CAPTIONS))
    judged = [row | {"verdict": row["caption_id"]} for row in captions]
    filled = [{name: row.get(name) for name in VERDICTS.names} for row in judged]
    ledger.write("verdicts", "00000", pa.Table.from_pylist(filled, schema=VERDICTS))
    for table in ("captions", "verdicts"):
        manifest.part(table, "00000", len(verdicts))
    manifest.data.purged = [PurgeEntry(keep="none", begun=now(), finished=now(), removed={})]
    manifest.finish()
    return ledger
