"""crossaudit submit"""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import ConfigFile, Overrides, Verbose


def register(app: typer.Typer, panel: str) -> None:
    example = "Example: crossaudit submit audit.yaml --address http://head:8265 --out s3://bucket/runs/june --wait"
    app.command(rich_help_panel=panel, epilog=example)(submit)


def submit(
    config: ConfigFile,
    address: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
            help="The dashboard of the cluster, http://HEAD:8265.",
            show_default=False,
        ),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Show what it prints, and end when it ends.")] = False,
    set_: Overrides = None,
    out: Annotated[str | None, typer.Option(metavar="URI", help="The run's URI, in place of `out`.")] = None,
    verbose: Verbose = False,
) -> None:
    """Audit a model on a Ray cluster: the same as run, as a job there.

    Only the configuration travels: every machine of the cluster reaches the model, the data set and the run under the
    same paths or URIs. The same submission again goes on where the run was stopped.
    """
    from audit.errors import AuditError
    from pipelines.configuration.settings import check_detectors, load_config
    from pipelines.console.terminal import say_log
    from pipelines.engine.ray_jobs import Cluster
    from pipelines.runs.status import has_begun, last_job, refuse_second

    settings, given = load_config(config, set_ or [], out)
    check_detectors(settings)
    refuse_second(settings.out)
    cluster = Cluster(address)
    job = cluster.submit(given, settings.out)

    typer.echo(f"job {job.id} at {job.address}", err=True)
    try:
        if wait:
            if cluster.follow(job.id, lambda text: say_log(text, err=True)) == "STOPPED":
                raise AuditError(
                    "was stopped", where=f"job {job.id}", hint="The same submission again goes on with it."
                )
            typer.echo(f"{settings.out}/report.html")
            return
        state = cluster.await_start(job.id, lambda: has_begun(settings.out, job))
    except KeyboardInterrupt:
        typer.echo(f"\nThe job goes on: `crossaudit stop {settings.out}` ends it.", err=True)
        raise typer.Exit(130) from None
    if last_job(settings.out) == job:
        typer.echo(f"{state.lower()}: `crossaudit status|logs|stop {settings.out}`")
    else:
        typer.echo(f"{state.lower()}: `ray job logs {job.id} --address {job.address} --follow`")
