"""The command `crossaudit logs`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import Address, RunDir, Verbose


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit logs s3://bucket/runs/june --follow")(logs)


def logs(
    run: RunDir,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")] = False,
    address: Address = None,
    verbose: Verbose = False,
) -> None:
    """Print the output of the last job of a submitted run."""
    from pipelines.console.terminal import say_log
    from pipelines.engine.ray_jobs import Cluster
    from pipelines.runs.status import job_of

    job = job_of(run, address)
    cluster = Cluster(job.address)
    if follow:
        cluster.follow(job.id, say_log)
    else:
        say_log(cluster.logs(job.id))
