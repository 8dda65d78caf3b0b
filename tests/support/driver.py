"""Run one step of a run on a Ray cluster, in a driver process that tests can kill.

Usage: python -m tests.support.driver AUDIT_YAML
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Callable

import pyarrow as pa

from audit import schema
from audit.record.ledger import Ledger, Shard, Tables, errors_table, slices
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.engine.step import Step
from pipelines.engine.worker import Worker

CAPTIONS = [f"caption {number}" for number in range(20)]
# Enough work that a test can act while it runs.
ROUNDS = 50_000
ODD = 7


def write_captions(ledger: Ledger) -> list[Shard]:
    """Write the captions, and return the shards of a step over them."""
    rows = [{"caption_id": f"{number:02d}", "caption": text, "row_count": 1} for number, text in enumerate(CAPTIONS)]
    ledger.write("captions", "00000", pa.Table.from_pylist(rows, schema=schema.CAPTIONS))
    return slices("", "00000", len(CAPTIONS), 2)


def digest(worker: Worker, shard: Shard, rounds: int = ROUNDS) -> Tables:
    """Return a table with a digest of each caption, and an error for caption ODD."""
    captions = worker.ledger.slice("captions", shard.source, shard.start, shard.stop)
    digests = [hashlib.pbkdf2_hmac("sha256", text.encode(), b"", rounds) for text in captions["caption"].to_pylist()]
    odd = [id_ for id_ in captions["caption_id"].to_pylist() if int(id_) == ODD]
    errors = [{"stage": "digest", "caption_id": id_, "kind": "odd", "message": "an odd one"} for id_ in odd]
    return {"digests": captions.append_column("digest", pa.array(digests)), "errors": errors_table(errors)}


def refuse(worker: Worker, shard: Shard) -> Tables:
    """Compute `digests`, with less work, but raise an exception if the shard has caption ODD."""
    logging.getLogger(__name__).info("at work")
    if shard.start <= ODD < shard.stop:
        raise ValueError(f"row {ODD} is odd")
    return digest(worker, shard, rounds=1)


def on_lost_row(ledger: Ledger, shard: Shard, kind: str, message: str) -> Tables:
    """Return an empty `digests` and an error for the caption of a shard of one row."""
    captions = ledger.slice("captions", shard.source, shard.start, shard.stop)
    error = {"stage": "digest", "caption_id": captions["caption_id"][0].as_py(), "kind": kind, "message": message}
    layout = captions.schema.append(pa.field("digest", pa.binary()))
    return {"digests": layout.empty_table(), "errors": errors_table([error])}


def step(ledger: Ledger, work: Callable[[Worker, Shard], Tables] = digest) -> Step:
    """Return the step that computes `digests`."""
    return Step("digest", "digests", "captions", ledger, work, on_lost_row)


def main(path: str) -> None:
    """Run the step with an audit.yaml."""
    config, given = load_config(path)
    ledger = Ledger(config.out)
    run = Run(config, ledger, Manifest.open(ledger, config, given), Reporter())
    ledger.sweep()
    run.manifest.write()
    run.execute(step(ledger), write_captions(ledger))
    run.manifest.finish()
    run.close()


if __name__ == "__main__":
    main(sys.argv[1])
