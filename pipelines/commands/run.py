"""The command `crossaudit run`."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext, redirect_stdout
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit.errors import UsageError
from pipelines.commands.options import (
    AcceptUnlike,
    ConfigFile,
    Json,
    Level,
    LogLevel,
    Overrides,
    Verbose,
    overrides,
    state,
)

if TYPE_CHECKING:
    from pipelines.configuration.config import Config

FOUND = 3


class FailOn(StrEnum):
    """The weakest verdict that makes `crossaudit run` fail."""

    verbatim = "verbatim"
    partial = "partial"


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(
        rich_help_panel=panel, epilog="Example: crossaudit run audit.yaml --set select.budget=500 --out runs/june"
    )(run)


def run(
    config: ConfigFile,
    set_: Overrides = None,
    out: Annotated[str | None, typer.Option(metavar="DIR", help="The run's folder or URI (default: `out`).")] = None,
    check_only: Annotated[
        bool, typer.Option("--check-only", help="List all problems that can be found in advance, then stop.")
    ] = False,
    fail_on: Annotated[
        FailOn | None,
        typer.Option(
            help=f"Exit with code {FOUND} if a caption has this verdict or a worse one. partial includes verbatim."
        ),
    ] = None,
    accept_unlike_controls: AcceptUnlike = False,
    json_: Json = False,
    log_level: LogLevel = Level.warning,
    verbose: Verbose = False,
) -> None:
    """Audit a model: screen every caption, generate the suspicious ones, and search for copies of training images.

    Gives each caption a verdict. Writes everything into one folder. Rerun the
    command to resume. Checks as much as possible before the work starts.

    The JSON document has the keys run, report, verdicts (number of captions per
    verdict) and fail_on (verdict, captions). With --check-only it has the keys
    caption_files and image_files.

    Exit codes: 0 done, 1 the audit could not finish, 2 wrong usage or
    configuration, 3 the audit finished and --fail-on applies.
    """
    from pipelines.configuration.settings import load_config
    from pipelines.console.progress import Reporter
    from pipelines.runs.audit import run_audit
    from pipelines.runs.preflight import check
    from pipelines.runs.summary import print_summary

    settings, given = load_config(config, overrides(set_, accept_unlike_controls), out)
    if fail_on and settings.images is None:
        hint = "Set `images`, or omit --fail-on."
        raise UsageError(f"without training images, no verdict can be {fail_on}", where="--fail-on", hint=hint)
    with redirect_stdout(sys.stderr) if json_ else nullcontext():
        if check_only:
            found = check(settings)
        else:
            run_audit(settings, given, Reporter(verbose=state.verbose), log_level.value)
    if check_only:
        captions, images = len(found.captions), len(found.images)
        if json_:
            typer.echo(json.dumps({"caption_files": captions, "image_files": images}))
        else:
            typer.echo(f"no problems found in {captions:,} caption files and {images:,} image files")
        return
    done = _outcome(settings, fail_on)
    if json_:
        typer.echo(json.dumps(done, indent=2))
    else:
        print_summary(settings.out)
    if fail_on and done["fail_on"]["captions"]:
        if not json_:
            typer.echo(f"--fail-on {fail_on}: {done['fail_on']['captions']:,} captions", err=True)
        raise typer.Exit(FOUND)


def _outcome(settings: Config, fail_on: FailOn | None) -> dict[str, Any]:
    """Return what `run --json` prints about a finished run."""
    from audit.record.ledger import Ledger
    from audit.schema import CONFIRMED_WORDS, VERDICT_WORDS
    from pipelines.tables.verdicts import count_verdicts

    counts = count_verdicts(Ledger(settings.out))
    verdicts = {word: counts.get(word, 0) for word in VERDICT_WORDS}
    failed = None
    if fail_on:
        worse = CONFIRMED_WORDS[: CONFIRMED_WORDS.index(fail_on) + 1]
        failed = {"verdict": fail_on.value, "captions": sum(verdicts[word] for word in worse)}
    return {"run": settings.out, "report": f"{settings.out}/report.html", "verdicts": verdicts, "fail_on": failed}
