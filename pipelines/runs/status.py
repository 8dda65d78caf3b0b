"""Where a run is and which job works on it, by its manifest: the run may be anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from audit.errors import AuditError
from pipelines.console.progress import Numbers, duration
from pipelines.engine.manifest import NAME, read
from pipelines.engine.ray_jobs import Cluster, Job

# Between two lines of progress lie seconds, or as long as one shard or a global stage takes.
_SILENT = 600.0


def state(manifest: Mapping[str, Any], job: str | None = None) -> str:
    """Return finished, stopped, killed, running, or silent (perhaps killed); `job`: what Ray says of its job."""
    if manifest["finished"]:
        return "finished"
    if manifest["failed"]:
        return "stopped"
    if job in ("FAILED", "STOPPED"):
        return "killed"
    return "silent" if _age(manifest) > _SILENT else "running"


def where(manifest: Mapping[str, Any], job: str | None = None) -> str:
    """One line: finished, stopped and why, or how far it is and when it said so. `job`: what Ray says of its job."""
    now = state(manifest, job)
    if now == "finished":
        return f"finished at {manifest['finished']}"
    progress = manifest["progress"] or {}
    at = progress.get("stage", "starting")
    if "done" in progress:
        numbers = Numbers(**{field.name: progress[field.name] for field in fields(Numbers)})
        at = f"{numbers.step}: {numbers.done:,} of {numbers.total:,}, {numbers.line()}"
    if now == "stopped":
        failed = manifest["failed"]
        return (
            f"stopped at {failed['at']}: {failed['message']}\nIt was at {at}. The same command again goes on with it."
        )
    if now == "killed":
        return f"killed: it was at {at}. The same command again goes on with it."
    silent = "; was it killed? The same command again goes on with it." if now == "silent" else ""
    return f"running: {at} ({duration(_age(manifest))} ago){silent}"


def as_json(uri: str, manifest: Mapping[str, Any], job: Job | None, job_state: str | None) -> dict[str, Any]:
    """Return what `crossaudit status --json` prints."""
    found: dict[str, Any] = {"run": uri, "state": state(manifest, job_state)}
    found |= {name: manifest[name] for name in ("started", "finished", "failed", "progress", "stages")}
    return found | {"job": None if job is None else {"id": job.id, "address": job.address, "state": job_state}}


def _age(manifest: Mapping[str, Any]) -> float:
    """Return the seconds since the run last wrote where it is."""
    said = (manifest["progress"] or {}).get("at", manifest["started"])
    return max((datetime.now(UTC) - datetime.fromisoformat(said)).total_seconds(), 0.0)


def job_in(manifest: Mapping[str, Any], address: str | None = None) -> Job | None:
    """The job that began a run last; `address`: where its cluster is reached from here, if not as when submitted."""
    known = manifest["jobs"]
    return Job(known[-1]["id"], address or known[-1]["address"]) if known else None


def last_job(uri: str) -> Job | None:
    """That job, as far as the run can be read from here."""
    try:
        return job_in(read(uri))
    except (AuditError, OSError):
        return None


def has_begun(uri: str, job: Job) -> bool:
    """Return whether the run is the job's and has not failed.

    A job that is refused before the work starts records its failure in the run a moment before it ends.
    """
    try:
        manifest = read(uri)
    except (AuditError, OSError):
        return False
    return job_in(manifest) == job and manifest["failed"] is None


def job_of(uri: str, address: str | None = None) -> Job:
    """That job. Raises AuditError where there is no run, or none was submitted."""
    job = job_in(read(uri), address)
    if job is None:
        raise AuditError("no job of a cluster has worked on it", where=f"{uri}/{NAME}", hint="Was it submitted at all?")
    return job


def refuse_second(uri: str) -> None:
    """Raises AuditError if a job works on the run already."""
    job = last_job(uri)
    if job is None:
        return
    try:
        state = Cluster(job.address).status(job.id)
    except AuditError:
        return  # that cluster is gone, and its jobs with it
    if state in ("PENDING", "RUNNING"):
        hint = f"`crossaudit stop {uri}` ends it."
        raise AuditError(f"job {job.id} works on it ({state.lower()}, {job.address})", where=uri, hint=hint)
