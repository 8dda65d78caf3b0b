"""The command `crossaudit status`."""

from __future__ import annotations

import json

import typer

from pipelines.commands.options import Address, Json, RunDir, Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit status s3://bucket/runs/june")(status)


def status(run: RunDir, address: Address = None, json_: Json = False, verbose: Verbose = False) -> None:
    """Show a run's progress and the state of its job.

    Needs only the run's folder or URI; the run itself may be in progress on any
    machine. The JSON document has the keys run, state, started, finished, failed,
    progress, stages and job. The state is finished, stopped, killed, running, or
    silent (no sign of life for more than ten minutes).
    """
    import pyarrow as pa

    from audit.errors import AuditError
    from pipelines.console.table import show
    from pipelines.console.terminal import say
    from pipelines.engine.manifest import read
    from pipelines.engine.ray_jobs import Cluster
    from pipelines.runs.status import as_json, job_in, where

    manifest = read(run)
    job, state = job_in(manifest, address), None
    if job is not None:
        try:
            state = Cluster(job.address).status(job.id)
        except AuditError as error:
            state = str(error).splitlines()[0]
    if json_:
        typer.echo(json.dumps(as_json(run, manifest, job, state), indent=2))
        return
    say(where(manifest, state))
    if job is not None:
        say(f"job {job.id}{f' at {job.address}' if job.address else ''}: {state}")
    stages = [{"stage": name} | stage.model_dump() for name, stage in manifest.stages.items()]
    if stages:
        show(pa.Table.from_pylist(stages))
