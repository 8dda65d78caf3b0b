"""Estimate the cost of an audit from metadata, the models' configurations and a short measurement."""

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
from pipelines.engine.manifest import Manifest, new
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
    """The work of an audit, and the measured speed of one worker (None if nothing was measured)."""

    work: Workload
    probe: SpeedProbe | None


def make_plan(config: Config, tflops: float | None = None, progress: Reporter | None = None) -> Plan:
    """Plan an audit. Writes nothing.

    Args:
        config: The resolved configuration.
        tflops: TFLOP/s that one GPU (or one worker without a GPU) sustains. If given, nothing is measured and Ray is
            not started.
        progress: Where to show progress (default: standard error).

    Returns:
        The work of the audit, and the measured speed of one worker if it was measured.

    Raises:
        AuditError: An input is missing or wrong, as for a run.
        UsageError: There is no GPU to measure.
    """
    progress = progress or Reporter()
    check_detectors(config)
    config = columns.resolved(config)
    inputs = input_files.find_inputs(config)
    calibration_checks.check(config)
    control_captions = read_control_captions(config.calibration.captions, config.calibration.column)
    costs = costs_of(config)
    with progress.waiting(f"counting the rows of {len(inputs.captions) + len(inputs.images):,} files"):
        rows = count_captions(inputs.captions, config.captions)
        images = count_images(inputs.images, config.images.column) if config.images else None
    captions = min(rows.rows, config.captions.sample or rows.rows)
    if not captions:
        where = inputs.captions[0].uri
        raise AuditError("the dataset has no rows", where=where, hint="Check `captions` in the configuration.")
    if tflops is None:
        probe = _probe(config, control_captions, inputs.images, progress)
        return Plan(
            Workload(config, rows, images, captions, len(control_captions), costs, measured(probe, costs, config)),
            probe,
        )
    return Plan(
        Workload(config, rows, images, captions, len(control_captions), costs, assumed(tflops, costs, config)), None
    )


def _probe(config: Config, control_captions: Sequence[str], files: Sequence[File], progress: Reporter) -> SpeedProbe:
    """Measure one worker, with the hardware and in the place that a run would use."""
    one = min(config.engine.workers.max, 1)  # none if the run works in this process
    engine = config.engine.model_copy(update={"workers": Workers(min=one, max=one)})
    config = config.model_copy(update={"engine": engine})
    ledger = Ledger(config.out)
    # A temporary manifest, which is never written.
    run = Run(config, ledger, Manifest(ledger, new(config, {})), progress)
    try:
        pool = run.workers((*config.scoring(), *(config.confirm.embedders if config.images else ())))
        with progress.waiting("measuring one worker"):
            found: SpeedProbe = pool.ask("call", measure, list(control_captions), _places(config, files))
        return found
    except UsageError as error:
        if error.where != "engine":
            raise
        hint = "Pass the TFLOP/s that one of your GPUs sustains as --tflops, or set engine.address to a GPU cluster."
        raise UsageError(f"cannot measure a worker: {error.what}", where="engine", hint=hint) from error
    finally:
        run.close()


def _places(config: Config, files: Sequence[File]) -> pa.Table:
    """Return the places of the first images in the first file that has images."""
    for file in files:
        assert config.images is not None
        places, _ = images_of.index(file, config.images.column, IMAGES)
        if len(places):
            return places
    return images_of.INDEX.empty_table()
