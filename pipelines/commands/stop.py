"""The command `crossaudit stop`."""

from __future__ import annotations

import typer

from pipelines.commands.options import Address, RunDir, Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit stop s3://bucket/runs/june")(stop)


def stop(run: RunDir, address: Address = None, verbose: Verbose = False) -> None:
    """Stop the job of a submitted run. Finished work is kept; submit the run again to resume."""
    from pipelines.engine.ray_jobs import Cluster
    from pipelines.runs.status import job_of

    job = job_of(run, address)
    stopping = Cluster(job.address).stop(job.id)
    typer.echo(f"job {job.id} {'is stopping' if stopping else 'was not running'}")
