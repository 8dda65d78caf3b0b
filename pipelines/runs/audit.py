"""Run an audit: all stages, in order."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from audit.errors import AuditError
from audit.record.ledger import Ledger
from pipelines.configuration.config import Config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest, stored
from pipelines.engine.ray_jobs import current_job
from pipelines.runs.finished_run import recomputed
from pipelines.tables.calibration import NAME
from pipelines.tables.mitigation import MEASURED, SUMMARY
from reports.purged import note


def run_audit(
    config: Config, given: Mapping[str, Any], progress: Reporter | None = None, log_level: str = "warning"
) -> None:
    """Run an audit from configuration to report, or resume one.

    Args:
        config: The resolved configuration.
        given: The configuration as the user gave it, for the manifest.
        progress: Where to show progress (default: standard error).
        log_level: The lowest level that is logged to RUN/logs: debug, info, warning or error.

    Raises:
        AuditError: The audit cannot finish.
    """
    from pipelines.reading import columns, input_files
    from pipelines.runs import preflight
    from pipelines.stages import (
        calibrate,
        cluster,
        confirm,
        controls,
        embed,
        generate,
        ingest,
        judge,
        perturb,
        report,
        reuse,
        screen,
        search,
        select,
    )

    progress = progress or Reporter()
    config = columns.resolved(config)
    ledger = Ledger(config.out)
    try:
        with progress.waiting("checking the configuration and the inputs"):
            inputs = preflight.check(config)
    except AuditError as error:
        _tell_status(ledger, config, given, error)
        raise
    manifest = Manifest.open(ledger, config, given)
    run = Run(config, ledger, manifest, progress, log_level)
    if removed := note(manifest.data):
        run.progress.say(
            f"{config.out}: {removed}; nothing is recomputed (`crossaudit check` verifies that it is complete)"
        )
        return
    with run:
        lost = _lost(run) if manifest.finished else []
        if manifest.finished:
            run.progress.say(f"{config.out} already holds this run, finished; {recomputed(lost)}")
        else:
            # Load the models first, so that a bad model fails now and not after hours of reading.
            run.workers((*config.scoring(), *(config.confirm.embedders if config.images else ())))
        with progress.waiting("reading the fingerprints of the inputs"):
            run.manifest.inputs(input_files.fingerprints(config, inputs))
        if manifest.finished and not lost:
            report.run(run)
            run.finish()
            return
        vectors = embed if config.index.path is None else reuse
        if vectors is reuse and not manifest.finished:
            reuse.check(run)
        search.check(run)
        calibrate.check_screen(run)
        ingest.run(run, inputs)
        controls.run(run)
        for stage in (vectors, search, cluster, calibrate, screen, select, perturb, generate, confirm, judge, report):
            stage.run(run)
        run.finish()


def _lost(run: Run) -> list[str]:
    """List the files of a finished audit that do not exist any more. Measurements of mitigation are not part of it."""
    parts = [part for part in run.manifest.lost() if part.partition("/")[0] not in (MEASURED, SUMMARY)]
    return parts if run.ledger.read_bytes(NAME) else [*parts, NAME]


def _tell_status(ledger: Ledger, config: Config, given: Mapping[str, Any], error: AuditError) -> None:
    """Record why a cluster job was refused before its run began, so that `crossaudit status` can show it.

    Leaves an existing run unchanged.
    """
    if current_job() is None:
        return
    # Problems with `out` itself are already part of the error that is being raised.
    with suppress(AuditError, OSError):
        if stored(ledger) is None:
            manifest = Manifest.open(ledger, config, given)
            manifest.begin()
            manifest.end(error)
