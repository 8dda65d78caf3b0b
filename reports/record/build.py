"""Build the record of a run from its tables and its manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import duckdb
import pyarrow as pa

from audit.errors import AuditError
from audit.record.manifest import RunManifest
from reports.causes import causes_sql
from reports.purged import note
from reports.record import captions, cases, mitigation, review
from reports.record.answer import answer, limits
from reports.record.commands import next_steps
from reports.record.funnel import funnel
from reports.record.histograms import histograms
from reports.record.model import Failure, Method, NotAudited, Record, RunInfo, WaiverNote
from reports.record.provenance import provenance
from reports.record.source import Source
from reports.stored_run import locate
from reports.views import connect
from reports.waivers import Waiver, waived_captions

TOP = 200  # cases with images


def build(run: str | Path, top: int = TOP, waivers: Sequence[Waiver] = ()) -> Record:
    """Build the record of a run.

    Args:
        run: The directory or URI of the run.
        top: The largest number of cases with images.
        waivers: Waivers, to mark the captions that they cover.

    Returns:
        The record.

    Raises:
        AuditError: A table or the manifest cannot be read.
    """
    manifest = locate(run).manifest()
    with connect(run) as connection:
        try:
            return _build(Source(connection, manifest, _address(run)), top, waivers)
        except (duckdb.Error, pa.ArrowException, OSError) as error:
            raise AuditError(f"a table cannot be read: {str(error).strip()}", where=str(run)) from error


def _build(source: Source, top: int, waivers: Sequence[Waiver]) -> Record:
    manifest = source.manifest
    steps, confirmed = funnel(source), captions.confirmed(source)
    selected, selected_count = captions.selected(source)
    people, human_verdicts = review.read(source)
    waiver_of = waived_captions(source.connection, waivers)
    shown = cases.cases(source, selected, top)
    measured = mitigation.read(source)
    method = _method(source)
    return Record(
        run=_info(source),
        answer=answer(manifest.claims, steps),
        claims=manifest.claims,
        limits=limits(method.uncalibrated),
        funnel=steps,
        verdicts=captions.verdict_counts(source),
        confirmed=confirmed,
        histograms=histograms(source),
        selected_count=selected_count,
        selected=selected,
        families=captions.families(source, selected),
        cases=shown,
        near_misses=captions.near_misses(source),
        nearest_misses=captions.nearest_misses(selected),
        not_audited=_not_audited(source),
        mitigation=measured,
        review=people,
        human_verdicts=human_verdicts,
        waivers={caption_id: _note(waiver) for caption_id, waiver in waiver_of.items()},
        next_steps=next_steps(
            source, confirmed=bool(confirmed.captions), mitigated=bool(measured), reviewed=bool(people)
        ),
        method=method,
        provenance=provenance(source),
    )


def _address(run: str | Path) -> str:
    """Return the run as a command takes it in any working directory."""
    return str(run) if "://" in str(run) else str(Path(run).resolve())


def _note(waiver: Waiver) -> WaiverNote:
    return WaiverNote(covers=waiver.covers, reason=waiver.grounds, owner=waiver.owner, expires=waiver.expires)


def _not_audited(source: Source) -> NotAudited:
    accounting = source.manifest.accounting
    return NotAudited(
        failures=[Failure(**{name: row[name] for name in Failure.model_fields}) for row in source.rows(causes_sql())],
        sampled_out=accounting.sampled_out,
        pairs=accounting.pairs,
    )


def _info(source: Source) -> RunInfo:
    manifest, settings = source.manifest, source.settings
    return RunInfo(
        id=_id(manifest),
        path=source.path,
        title=(settings.get("report") or {}).get("title") or "Memorization audit",
        model=(settings.get("model") or {}).get("path", "a text-to-image model"),
        started=manifest.started,
        finished=manifest.finished,
        crossaudit=manifest.version,
        device=manifest.device,
        dtype=manifest.dtype,
        shows_training_images=source.manifest.shows_training_images,
        pictures_removed=note(manifest),
    )


def _id(manifest: RunManifest) -> str:
    """Derive the id of a run from when it began and from the contents that it read: copies of a run share it."""
    read = sorted(item.sha256 for item in manifest.inputs)
    return str(uuid5(NAMESPACE_OID, json.dumps([manifest.started, manifest.models, read], sort_keys=True)))


def _method(source: Source) -> Method:
    manifest = source.manifest
    checkpoint = manifest.checkpoints.get("model")
    return Method(
        settings=manifest.resolved,
        uncalibrated=checkpoint.uncalibrated if checkpoint else [],
        embedder=source.embedder,
        resolution=(manifest.models.get("model") or {}).get("resolution"),
        calibration=manifest.calibration,
        thresholds=manifest.deciding_thresholds,
        confirm_error=manifest.confirm_error,
        selection=manifest.selection,
        clusters=manifest.clusters,
        index=manifest.index,
    )
