"""Run the stage `ingest` alone."""

from __future__ import annotations

from pathlib import Path

from audit.record.ledger import Ledger
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.reading import columns, input_files
from pipelines.stages import ingest
from pipelines.steps import caption_groups as grouping

LONG = "a very long story of a grey cat that slept on the roof of an old house by the sea, while it rained {} days"
CONTROL_CAPTIONS = ["Picture 3 of a thing?", "a river", LONG.format("two")]


def ingested(dataset: Path, out: Path, *overrides: str) -> Run:
    """Return a run of an audit.yaml after the stage `ingest`."""
    config, given = load_config(dataset, overrides, str(out))
    config = columns.resolved(config)
    ledger = Ledger(config.out)
    run = Run(config, ledger, Manifest.open(ledger, config, given), Reporter())
    try:
        inputs = input_files.find_inputs(config)
        run.manifest.inputs(input_files.fingerprints(config, inputs))
        ingest.run(run, inputs)
        grouping.known(run, CONTROL_CAPTIONS)
    finally:
        run.close()
    return run
