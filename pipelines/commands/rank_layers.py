"""The command `crossaudit rank-layers`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import Device, Dtype, Verbose, check_writable

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.configuration.inputs import ModelFiles

MOST = 300  # maximum number of captions, and of control captions


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = (
        "Example: crossaudit rank-layers run, or "
        "crossaudit rank-layers my-model --captions memorized.txt --controls controls.txt"
    )
    app.command(rich_help_panel=panel, epilog=example)(rank_layers)


def rank_layers(
    source: Annotated[str, typer.Argument(metavar="RUN|MODEL", help="A finished run, or a model.")],
    captions: Annotated[
        str | None, typer.Option(metavar="FILE", help="Captions, one per line (for a run: its confirmed captions).")
    ] = None,
    controls: Annotated[
        str | None, typer.Option(metavar="FILE", help="Captions never trained on, one per line (for a run: its own).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the initial noise.")] = 0,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the table, including BOS attention, to .parquet, .csv or .jsonl."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Show how well attention entropy separates captions from control captions, as AUROC per layer and timestep.

    An AUROC of 0.5 is chance; below 0.5 the sign is inverted. A layer chosen from
    this table is an oracle choice: an auditor cannot know it in advance.
    """
    import audit
    from audit.explaining.layers import layers as look
    from audit.models.precision import resolve_dtype
    from pipelines.configuration.inputs import ModelFiles
    from pipelines.console.progress import told, waiting
    from pipelines.engine.models import load
    from pipelines.reading.control_captions import read_control_captions
    from pipelines.reading.sampling import evenly_spaced
    from reports.tabular import check_suffix, write_table

    if out is not None:
        check_suffix(out)
        check_writable(out)
    lora = None
    if captions is None and controls is None:
        model, lora, own, unseen = _of_run(source)
    elif captions is None or controls is None:
        raise audit.UsageError(
            "--captions and --controls go together", hint="Pass both of them, or pass neither and a run."
        )
    else:
        model, own, unseen = (
            ModelFiles(path=source),
            *(read_control_captions(file) for file in (captions, controls)),
        )
    own, unseen = evenly_spaced(own, MOST), evenly_spaced(unseen, MOST)
    with waiting("loading the model"):
        loaded = load(model, lora, device, resolve_dtype(dtype, device))
    with told() as progress:
        table = look(loaded, own, unseen, seed, progress=progress)
    if out is not None:
        write_table(table, out)
    _print(table, len(own), len(unseen))


def _of_run(run: str) -> tuple[ModelFiles, str | None, list[str], list[str]]:
    """Return the model, LoRA weights, confirmed captions and control captions of a run."""
    from audit.errors import AuditError
    from pipelines.runs.finished_run import finished
    from pipelines.tables import verdicts

    ledger, _, config = finished(run)
    confirmed = verdicts.confirmed(ledger, ["caption"])["caption"].to_pylist()
    if not confirmed:
        raise AuditError(
            "the run has no confirmed captions", where=run, hint="Pass a model, --captions and --controls."
        )
    controls = ledger.read("control_screen", columns=["caption"])["caption"].unique().to_pylist()
    return config.model, config.lora, confirmed, controls


def _print(table: pa.Table, captions: int, controls: int) -> None:
    from rich.table import Table
    from rich.text import Text

    from pipelines.console.terminal import Console

    rows = [row for row in table.to_pylist() if row["feature"] == "entropy"]
    timesteps = sorted({row["timestep"] for row in rows}, reverse=True)
    auroc = {(row["layer"], row["timestep"]): row["auroc"] for row in rows}
    title = f"Attention entropy: AUROC of {captions} captions against {controls} control captions"
    shown = Table(
        "layer", *(f"t = {t}" for t in timesteps), title=title, title_justify="left", box=None, pad_edge=False
    )
    for column in shown.columns[1:]:
        column.justify = "right"
    for layer in sorted({row["layer"] for row in rows}):
        cells = [auroc[layer, t] for t in timesteps]
        styled = [Text(f"{cell:.2f}", "red" if cell < 0.3 else "green" if cell > 0.7 else "dim") for cell in cells]
        shown.add_row(str(layer), *styled)
    Console().print(shown)
