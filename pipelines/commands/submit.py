"""The command `crossaudit submit`."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import AcceptUnlike, ConfigFile, Level, LogLevel, Overrides, Verbose, overrides


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = "Example: crossaudit submit audit.yaml --address http://head:8265 --out s3://bucket/runs/june --wait"
    app.command(rich_help_panel=panel, epilog=example)(submit)


def submit(
    config: ConfigFile,
    address: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
            help="The cluster's dashboard, http://HEAD:8265.",
            show_default=False,
        ),
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Show the job's output and wait for it to end.")] = False,
    set_: Overrides = None,
    out: Annotated[str | None, typer.Option(metavar="URI", help="The run's URI (default: `out`).")] = None,
    accept_unlike_controls: AcceptUnlike = False,
    log_level: LogLevel = Level.warning,
    verbose: Verbose = False,
) -> None:
    """Audit a model on a Ray cluster: like `run`, but as a job of the cluster.

    Only the configuration is sent to the cluster. Every machine must reach the
    model, the dataset and the run under the same paths or URIs. Submit the run
    again to resume.
    """
    from audit.errors import AuditError
    from pipelines.configuration.settings import check_detectors, load_config
    from pipelines.console.terminal import say_log
    from pipelines.engine.ray_jobs import Cluster
    from pipelines.runs.status import has_begun, last_job, refuse_second

    settings, given = load_config(config, overrides(set_, accept_unlike_controls), out)
    check_detectors(settings)
    refuse_second(settings.out)
    cluster = Cluster(address)
    job = cluster.submit(given, settings.out, log_level.value)

    typer.echo(f"job {job.id} at {job.address}", err=True)
    try:
        if wait:
            if cluster.follow(job.id, lambda text: say_log(text, err=True)) == "STOPPED":
                raise AuditError("was stopped", where=f"job {job.id}", hint="Submit the run again to resume.")
            typer.echo(f"{settings.out}/report.html")
            return
        state = cluster.await_start(job.id, lambda: has_begun(settings.out, job))
    except KeyboardInterrupt:
        typer.echo(f"\nThe job is still running. To stop it: `crossaudit stop {settings.out}`", err=True)
        raise typer.Exit(130) from None
    if last_job(settings.out) == job:
        typer.echo(f"{state.lower()}: `crossaudit status|logs|stop {settings.out}`")
    else:
        typer.echo(f"{state.lower()}: `ray job logs {job.id} --address {job.address} --follow`")
