"""The command line `crossaudit`: its commands, error messages and exit codes."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

from audit.errors import AuditError, UsageError
from pipelines.commands import (
    check,
    claims,
    clean,
    compare,
    config,
    controls,
    demo,
    detectors,
    download_weights,
    errors,
    evaluate,
    exclusions,
    explain,
    export,
    gate,
    index,
    init,
    logs,
    lookup,
    mitigate,
    plan,
    publish,
    purge,
    query,
    rank_layers,
    report,
    reproduce,
    review,
    run,
    sql,
    status,
    stop,
    submit,
    ui,
    views,
)
from pipelines.commands.options import state
from pipelines.console.terminal import say
from pipelines.engine.tracebacks import plain, text_of
from pipelines.extras import missing

app = typer.Typer(
    name="crossaudit",
    help="Audit a text-to-image diffusion model for memorized training images.",
    epilog="Start with `crossaudit demo`, or with `crossaudit init` followed by `crossaudit run audit.yaml`. "
    "Exit codes: 0 done, 1 the audit could not finish, 2 wrong usage or configuration, "
    "3 `run --fail-on`, `gate` or `compare --fail-if` says no.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PANELS = {
    "Audit": (demo, init, config, download_weights, controls, plan, index, run),
    "Look at the results": (
        ui,
        report,
        claims,
        query,
        sql,
        views,
        compare,
        evaluate,
        check,
        errors,
        review,
        lookup,
        reproduce,
        explain,
        rank_layers,
        detectors,
    ),
    "Act on them": (gate, exclusions, clean, mitigate, purge),
    "Hand them on": (export, publish),
    "On a Ray cluster": (submit, status, logs, stop),
}
for panel, modules in PANELS.items():
    for module in modules:
        module.register(app, panel)


def _version(asked: bool) -> None:
    if asked:
        from importlib import metadata

        typer.echo(f"crossaudit {metadata.version('crossaudit')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


# Calling `app` would build all commands again each time.
command = typer.main.get_command(app)


def main() -> None:
    """Run the command line and exit with the code that its outcome calls for."""
    try:
        command()
    except UsageError as error:
        _fail(str(error), 2, error)
    except AuditError as error:
        _fail(str(error), 1, error)
    except KeyboardInterrupt as error:
        _fail("interrupted; rerun the command to resume", 130, error)
    except Exception as error:
        if (needed := missing(error)) is not None:
            _fail(str(needed), 2, needed)
        _fail(str(plain(error)), 1, error)


def _fail(message: str, code: int, error: BaseException) -> NoReturn:
    if state.verbose:
        say(text_of(error), err=True, nl=False)
    say(f"crossaudit: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
