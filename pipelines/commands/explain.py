"""The command `crossaudit explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Device, Dtype, Verbose, check_writable

BAND = 64  # control captions per comparison band; each costs one generation


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    example = (
        'Example: crossaudit explain my-model "a caption" --calibration run/calibration.json --controls controls.txt'
    )
    app.command(rich_help_panel=panel, epilog=example)(explain)


def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A diffusers folder, hub id or .safetensors file.")],
    caption: Annotated[str, typer.Argument(metavar="CAPTION", help="The caption.")],
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="RUN/calibration.json from a run on this model; needed for the score."),
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=f"Captions never trained on, one per line. {BAND} of them are compared."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the generation.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="The number of sampling steps.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="The guidance scale of the generation.")] = 7.5,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The HTML file to write.")] = Path("explanation.html"),
    verbose: Verbose = False,
) -> None:
    """Explain the score of one caption: how much attention each token gets, how concentrated it is, and where.

    Writes one HTML file, which also shows which tokens matter. The page shows how
    the model processes the caption, not whether the image is a copy.
    """
    import audit
    from audit.explaining.caption import explain as look
    from audit.models.precision import resolve_dtype
    from pipelines.console.progress import told, waiting
    from pipelines.console.terminal import say
    from pipelines.reading.control_captions import read_control_captions
    from pipelines.reading.local_copies import fetched
    from pipelines.reading.sampling import evenly_spaced
    from pipelines.runs.written_files import run_of, write_picture
    from reports.explanation import render
    from reports.tabular import check_suffix

    check_suffix(out, (".html", ".htm"))
    check_writable(out)
    unseen = evenly_spaced(read_control_captions(controls), BAND) if controls else []
    if controls and not unseen:
        raise audit.UsageError("holds no control captions", where=controls, hint="Write one caption per line.")
    known = None if calibration is None else audit.load_calibration(calibration)
    with waiting("loading the model"):
        loaded = audit.load_model(fetched(model), device, resolve_dtype(dtype, device))
    with told() as progress:
        explained = look(loaded, caption, seed, steps, guidance_scale, known, unseen, progress)
    run = run_of(out, calibration)
    problem = write_picture(run, out, render(explained).encode(), caption)
    if run is not None and problem:
        say(f"{out}: `crossaudit purge` will not remove this file: {problem}", err=True)
    typer.echo(str(out))
