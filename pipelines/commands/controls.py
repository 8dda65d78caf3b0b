"""The commands `crossaudit controls holdout`, `propose`, `check` and `misses`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import RunDir, Verbose, check_writable

Files = Annotated[
    list[str],
    typer.Argument(metavar="DATASET", help="The caption files: paths, folders or globs.", show_default=False),
]
Column = Annotated[str | None, typer.Option(metavar="NAME", help="The caption column (default: as for `captions`).")]
SeedOption = Annotated[int, typer.Option(min=0, help="The seed of the random draw.")]


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to `app`, in a panel of `crossaudit --help`."""
    group = typer.Typer(no_args_is_help=True, help="Get control captions, and check whether they are like the dataset.")
    add = group.command
    add(epilog="Example: crossaudit controls holdout 'captions/*.parquet' --out held-out")(holdout)
    add(epilog="Example: crossaudit controls propose 'captions/*.parquet' --out proposed.parquet")(propose)
    add(epilog="Example: crossaudit controls check 'captions/*.parquet' --controls controls.txt")(check)
    add(epilog="Example: crossaudit controls misses run --canaries held-out/canaries.parquet")(misses)
    app.add_typer(group, name="controls", rich_help_panel=panel)


def holdout(
    dataset: Files,
    out: Annotated[Path, typer.Option(metavar="DIR", help="A new or empty folder for the files.")],
    count: Annotated[int, typer.Option(min=1, help="Number of control captions.")] = 1000,
    canaries: Annotated[int, typer.Option(min=0, help="Number of canaries per dose (1, 5, 20 and 100).")] = 25,
    column: Column = None,
    seed: SeedOption = 0,
    verbose: Verbose = False,
) -> None:
    """Before a training: set control captions aside, and choose canaries to plant at known doses.

    Writes control-captions.parquet (captions and where their images are),
    canaries.parquet (caption, dose and where its image is), training-list.parquet
    (every row to train on, and how often) and exclusions.parquet, with which
    `crossaudit clean` writes the dataset without the held-out rows. Rows whose
    caption is near-identical to a held-out caption or to a canary are left out
    too.
    """
    from pipelines.console.progress import waiting
    from pipelines.reading.dataset import open_dataset
    from pipelines.runs.holdout import hold_out

    with waiting("setting captions aside"):
        done = hold_out(open_dataset(dataset, column), out, count, canaries, seed)
    typer.echo(
        f"{out}: {done.controls:,} control captions, {done.canaries:,} canaries; "
        f"{done.dropped:,} rows leave the training, which has {done.rows:,} rows with repetitions"
    )


def propose(
    dataset: Files,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The proposals: .parquet, or .txt (one per line).")],
    count: Annotated[int, typer.Option(min=1, help="Number of proposals.")] = 1000,
    column: Column = None,
    seed: SeedOption = 0,
    verbose: Verbose = False,
) -> None:
    """For a model that is already trained: rewrite captions of the dataset into control captions.

    Replaces the words that say what a caption is about by such words of other
    captions, and keeps template, form and length. Read some of the proposals
    before you use them.
    """
    import pyarrow.parquet as pq

    from audit.calibration.rewriting import CAN, CANNOT, rewrite
    from audit.errors import UsageError
    from pipelines.console.progress import waiting
    from pipelines.reading.dataset import open_dataset, sample
    from pipelines.steps.control_likeness import SAMPLE

    if out.suffix not in (".parquet", ".txt"):
        raise UsageError("is neither .parquet nor .txt", where=str(out), hint="Choose another --out.")
    check_writable(out)
    with waiting("rewriting captions"):
        captions = sample(open_dataset(dataset, column), max(SAMPLE, 4 * count), seed)
        table = rewrite(captions, count, seed)
    if out.suffix == ".parquet":
        pq.write_table(table, out, compression="zstd")
    else:
        out.write_text("".join(f"{' '.join(text.split())}\n" for text in table["caption"].to_pylist()), "utf-8")
    fewer = f" (of {count:,} asked for)" if len(table) < count else ""
    typer.echo(f"{out}: {len(table):,} proposals{fewer}\n{CAN}\n{CANNOT}")


def check(
    dataset: Files,
    controls: Annotated[str, typer.Option(metavar="FILE", help="The control captions.")],
    column: Column = None,
    controls_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The column of the control captions.")
    ] = None,
    seed: SeedOption = 0,
    verbose: Verbose = False,
) -> None:
    """Check whether control captions are like the captions of a dataset, as `crossaudit run` does.

    Without a model, it cannot see which captions the tokenizer truncates.

    Exit codes: 0 alike or too few to tell, 1 unlike, 2 wrong usage.
    """
    from audit.calibration.likeness import compare
    from pipelines.console.progress import waiting
    from pipelines.reading.control_captions import read_control_captions
    from pipelines.reading.dataset import grouped, open_dataset, sample
    from pipelines.steps.control_likeness import SAMPLE, describe, entry_of, refusal

    with waiting("comparing captions"):
        captions = sample(open_dataset(dataset, column), SAMPLE, seed)
        known = set(captions)
        mine = [text for text in read_control_captions(controls, controls_column) if text not in known]
        entry = entry_of(compare(grouped(mine), grouped(captions), seed))
    if entry.unlike:
        raise refusal(entry, controls)
    typer.echo(f"{controls}: {describe(entry)}")


def misses(
    run: RunDir,
    canaries: Annotated[str, typer.Option(metavar="FILE", help="canaries.parquet of `crossaudit controls holdout`.")],
    verbose: Verbose = False,
) -> None:
    """Show how many canaries an audit of the trained model missed, by dose.

    The dataset of the audit must contain the canaries. A canary that was not
    selected, or that the model did not memorize, counts as missed.
    """
    import pyarrow.parquet as pq

    from audit.record.filesystem import open_file
    from pipelines.runs.holdout import misses as count_misses
    from pipelines.runs.holdout import read_verdicts

    with open_file(canaries) as source:
        planted = pq.read_table(source, columns=["caption_id", "dose"])
    table = count_misses(read_verdicts(run), planted)
    typer.echo("dose  canaries  confirmed  missed")
    for row in table.to_pylist():
        share = f"{row['miss_rate']:.1%} (95 % interval {row['low']:.1%} to {row['high']:.1%})"
        typer.echo(f"{row['dose']:>4}  {row['canaries']:>8}  {row['confirmed']:>9}  {share}")
