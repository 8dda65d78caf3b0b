"""The command `crossaudit review`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import RunDir, Verbose

if TYPE_CHECKING:
    from pipelines.runs.review import Review


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit review run --rater anna")(review)


def review(
    run: RunDir,
    rater: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who judges. Without it, the page asks each rater.")
    ] = None,
    cases: Annotated[
        int | None, typer.Option(metavar="N", help="Judge at most N confirmed captions (default: 500).")
    ] = None,
    decoys: Annotated[
        int | None,
        typer.Option(metavar="N", help="Mix in N decoys that are not copies, and N/3 that are (default: 60)."),
    ] = None,
    port: Annotated[int, typer.Option(metavar="PORT", help="Port of the page; 0 takes a free one.")] = 0,
    verbose: Verbose = False,
) -> None:
    """Let people judge the confirmed captions, on a page that only this machine can open.

    Raters compare two pictures at a time, by keyboard. They know neither which
    of the two was generated nor what the audit says, and decoys of known truth
    are mixed in. Two raters or more judge alone; then `crossaudit report` shows
    whether they agree, how often they err, and which verdicts they uphold.

    Answers are stored as they are given. Press Ctrl-C when the raters are done;
    the same command continues later. The first call draws the pairs.
    """
    from pipelines.console.progress import waiting
    from pipelines.console.terminal import say
    from pipelines.review.answers import rater_named
    from pipelines.review.server import ReviewServer
    from pipelines.runs.review import open_review

    name = rater_named(rater) if rater is not None else None
    with waiting("preparing the pictures"):
        opened = open_review(run, cases, decoys)
    for note in opened.notes:
        say(f"note: {note}", err=True)
    server = ReviewServer(opened.answers, opened.pictures, name, port)
    typer.echo(_pairs(opened))
    typer.echo(f"Open {server.address}")
    typer.echo("Answers are stored as they are given. Press Ctrl-C when the raters are done.")
    server.serve()
    typer.echo()
    _summarize(opened)
    say(f"Next: crossaudit report {run}")


def _pairs(opened: Review) -> str:
    counts = opened.counts
    negative, positive = counts["control"] + counts["mismatch"], counts["altered"]
    return (
        f"{len(opened.pairs):,} pairs: {counts['case']:,} confirmed captions, {negative:,} decoys that are not copies "
        f"({counts['control']:,} of control captions), {positive:,} that are"
    )


def _summarize(opened: Review) -> None:
    """Print how far each rater is."""
    from pipelines.review.answers import REVIEWS

    for rater in opened.ledger.parts(REVIEWS):
        judged = opened.ledger.rows(REVIEWS, rater)
        typer.echo(f"{rater}: {judged:,} of {len(opened.pairs):,} pairs judged")
