"""Read a run's progress and its cluster job from its manifest. The run may be on any machine."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from audit.durations import duration
from audit.errors import AuditError
from audit.record.manifest import RunManifest
from pipelines.console.numbers import Numbers
from pipelines.engine.manifest import NAME, read
from pipelines.engine.ray_jobs import Cluster, Job

# Progress is written every few seconds, or less often if one shard or one global stage takes longer.
_SILENT = 600.0


def state(manifest: RunManifest, job: str | None = None) -> str:
    """Return finished, stopped, killed, running, or silent (possibly killed). `job` is the job status from Ray."""
    if manifest.finished:
        return "finished"
    if manifest.failed or job == "STOPPED":  # a job that is stopped before its run can record it is only STOPPED
        return "stopped"
    if job == "FAILED":
        return "killed"
    return "silent" if _age(manifest) > _SILENT else "running"


def where(manifest: RunManifest, job: str | None = None) -> str:
    """Describe the state of a run: finished, stopped with the reason, or its progress and the age of that report.

    `job` is the job status from Ray.
    """
    now = state(manifest, job)
    if now == "finished":
        return f"finished at {manifest.finished}"
    at = manifest.progress.stage if manifest.progress else "starting"
    if manifest.progress and manifest.progress.done is not None:
        numbers = Numbers(**manifest.progress.model_dump(include={field.name for field in fields(Numbers)}))
        at = f"{numbers.step}: {numbers.line()}"
    if now in ("stopped", "killed"):
        why = f"{now} at {manifest.failed.at}: {manifest.failed.message}\n" if manifest.failed else f"{now}. "
        return f"{why}Last progress: {at}. Rerun the command to resume."
    silent = "; it may have been killed. If so, rerun the command to resume." if now == "silent" else ""
    return f"running: {at} ({duration(round(_age(manifest)))} ago){silent}"


def as_json(uri: str, manifest: RunManifest, job: Job | None, job_state: str | None) -> dict[str, Any]:
    """Return the document that `crossaudit status --json` prints.

    Args:
        uri: The run.
        manifest: Its manifest.
        job: Its last job, if it was submitted.
        job_state: The job status from Ray, or why it is unknown.

    Returns:
        The document, ready for `json.dumps`.
    """
    found: dict[str, Any] = {"run": uri, "state": state(manifest, job_state)}
    shown = {"started", "finished", "failed", "progress", "stages"}
    found |= manifest.model_dump(include=shown, exclude_unset=True)
    return found | {"job": None if job is None else {"id": job.id, "address": job.address, "state": job_state}}


def _age(manifest: RunManifest) -> float:
    """Return the seconds since the run last wrote its progress."""
    said = manifest.progress.at if manifest.progress else manifest.started
    return max((datetime.now(UTC) - datetime.fromisoformat(said)).total_seconds(), 0.0)


def job_in(manifest: RunManifest, address: str | None = None) -> Job | None:
    """Return the last job of a run, or None. `address` overrides the cluster address that was recorded."""
    last = manifest.jobs[-1] if manifest.jobs else None
    return Job(last.id, address or last.address) if last else None


def last_job(uri: str) -> Job | None:
    """Return the last job of the run at a path or URI, or None if there is no job or the run cannot be read."""
    try:
        return job_in(read(uri))
    except (AuditError, OSError):
        return None


def has_begun(uri: str, job: Job) -> bool:
    """Return whether the job is the last one of the run and has not failed.

    A job that is refused before the work starts records its failure in the run just before it ends.
    """
    try:
        manifest = read(uri)
    except (AuditError, OSError):
        return False
    return job_in(manifest) == job and manifest.failed is None


def job_of(uri: str, address: str | None = None) -> Job:
    """Return the last job of a run. Raises AuditError if there is no run or it was not submitted."""
    job = job_in(read(uri), address)
    if job is None:
        hint = "Only runs started with `crossaudit submit` have a job."
        raise AuditError("no cluster job has worked on this run", where=f"{uri}/{NAME}", hint=hint)
    return job


def refuse_second(uri: str) -> None:
    """Raise AuditError if a job is already working on the run."""
    job = last_job(uri)
    if job is None:
        return
    try:
        state = Cluster(job.address).status(job.id)
    except AuditError:
        return  # the cluster is gone, and its jobs with it
    if state in ("PENDING", "RUNNING"):
        hint = f"To stop it: `crossaudit stop {uri}`"
        what = f"job {job.id} is already working on this run ({state.lower()}, {job.address})"
        raise AuditError(what, where=uri, hint=hint)
