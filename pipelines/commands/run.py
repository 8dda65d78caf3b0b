"""crossaudit run"""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.commands.options import ConfigFile, Overrides, Verbose


def register(app: typer.Typer) -> None:
    app.command(epilog="Example: crossaudit run audit.yaml --set select.budget=500 --out runs/june")(run)


def run(
    config: ConfigFile,
    set_: Overrides = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="The run's folder or URI, in place of `out`.")] = None,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="Look for problems, list all of them, and do no more.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Audit a model: every caption screened, the suspicious ones generated and looked up, a verdict for each.

    Everything goes into one folder. The same command again goes on where it was stopped. What can be checked before the
    work starts is checked first.
    """
    from pipelines.preflight import check
    from pipelines.run import run_audit
    from pipelines.settings import load_config

    settings, given = load_config(config, set_ or [], out)
    if check_only:
        found = check(settings)
        typer.echo(f"no problem found: {len(found.captions):,} caption and {len(found.images):,} image files")
        return
    run_audit(settings, given)
    typer.echo(f"{settings.out}/report.html")
