"""`crossaudit plan`: what an audit would take, from metadata, the models' configurations and a short measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger
from pipelines.configuration.config import Config, Workers
from pipelines.configuration.settings import check_detectors
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.planning.probing import IMAGES, SpeedProbe, measure
from pipelines.planning.speed import assumed, costs_of, measured
from pipelines.planning.workload import Workload
from pipelines.reading import columns, input_files
from pipelines.reading import images as images_of
from pipelines.reading.control_captions import read_control_captions
from pipelines.reading.counting import count_captions, count_images
from pipelines.reading.files import File
from pipelines.steps import calibration_checks


@dataclass(frozen=True)
class Plan:
    """What there is to do, and what was measured of it, if anything was."""

    work: Workload
    probe: SpeedProbe | None


def make_plan(config: Config, tflops: float | None = None, progress: Reporter | None = None) -> Plan:
    """Writes nothing. `tflops`: what one GPU (or a worker without) sustains; then nothing is measured, and no Ray
    started.

    Raises AuditError as a run does before it begins, and UsageError where there is no GPU to measure.
    """
    progress = progress or Reporter()
    check_detectors(config)
    config = columns.resolved(config)
    inputs = input_files.find_inputs(config)
    calibration_checks.check(config)
    nulls = read_control_captions(config.calibration.captions, config.calibration.column)
    costs = costs_of(config)
    progress.say(f"counting the rows of {len(inputs.captions) + len(inputs.images):,} files")
    rows = count_captions(inputs.captions, config.captions)
    images = count_images(inputs.images, config.images.column) if config.images else None
    captions = min(rows.rows, config.captions.sample or rows.rows)
    if not captions:
        where = inputs.captions[0].uri
        raise AuditError("the data set has no rows", where=where, hint="Check `captions` in the configuration.")
    if tflops is None:
        probe = _probe(config, nulls, inputs.images, progress)
        return Plan(Workload(config, rows, images, captions, len(nulls), costs, measured(probe, costs, config)), probe)
    return Plan(Workload(config, rows, images, captions, len(nulls), costs, assumed(tflops, costs, config)), None)


def _probe(config: Config, nulls: Sequence[str], files: Sequence[File], progress: Reporter) -> SpeedProbe:
    """One worker, of the kind and in the place that a run would have, measures itself."""
    engine = config.engine.model_copy(update={"workers": Workers(min=1, max=1)})
    config = config.model_copy(update={"engine": engine})
    ledger = Ledger(config.out)
    # The manifest of no run: nobody writes it.
    run = Run(config, ledger, Manifest(ledger, {"models": {}}), progress)
    try:
        pool = run.workers((*config.scoring(), *(config.confirm.embedders if config.images else ())))
        progress.say("measuring one worker")
        found: SpeedProbe = pool.ask("call", measure, list(nulls), _places(config, files))
        return found
    except UsageError as error:
        if error.where != "engine":
            raise
        hint = "Give --tflops, what one of your GPUs sustains, or name a cluster that has them by engine.address."
        raise UsageError(f"nothing can be measured: {error.what}", where="engine", hint=hint) from error
    finally:
        run.close()


def _places(config: Config, files: Sequence[File]) -> pa.Table:
    """The first images of the first file that has any."""
    for file in files:
        assert config.images is not None
        places, _ = images_of.index(file, config.images.column, IMAGES)
        if len(places):
            return places
    return images_of.INDEX.empty_table()
