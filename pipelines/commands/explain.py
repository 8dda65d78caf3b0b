"""crossaudit explain"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import Device, Dtype, Verbose, check_writable

BAND = 64  # control captions that are run for the band: each costs a generation


def register(app: typer.Typer, panel: str) -> None:
    example = (
        'Example: crossaudit explain my-model "a caption" --calibration run/calibration.json --controls controls.txt'
    )
    app.command(rich_help_panel=panel, epilog=example)(explain)


def explain(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A diffusers folder, hub id or .safetensors file.")],
    caption: Annotated[str, typer.Argument(metavar="CAPTION", help="The caption.")],
    calibration: Annotated[
        Path | None, typer.Option(metavar="FILE", help="RUN/calibration.json of a run of this model, for the score.")
    ] = None,
    controls: Annotated[
        str | None,
        typer.Option(metavar="FILE", help=f"Captions never trained on, one a line: {BAND} of them are run beside it."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the run.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Of the run.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Of the run.")] = 7.5,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write: .html.")] = Path("explanation.html"),
    verbose: Verbose = False,
) -> None:
    """Explain one caption's score: what each token is attended to, how widely, where in the image, which tokens matter.

    One HTML file. It says how the model sees the caption, not whether the image is a copy.
    """
    import audit
    from audit.explaining.caption import explain as look
    from audit.models.precision import resolve_dtype
    from pipelines.console.progress import told, waiting
    from pipelines.console.terminal import say
    from pipelines.reading.control_captions import read_control_captions, spread
    from pipelines.reading.local_copies import fetched
    from pipelines.runs.written_files import run_of, write_picture
    from reports.explanation import render
    from reports.tabular import check_suffix

    check_suffix(out, (".html", ".htm"))
    check_writable(out)
    unseen = spread(read_control_captions(controls), BAND) if controls else []
    if controls and not unseen:
        raise audit.UsageError("there are no control captions", where=controls, hint="Give one caption a line.")
    known = None if calibration is None else audit.load_calibration(calibration)
    with waiting("loading the model"):
        loaded = audit.load_model(fetched(model), device, resolve_dtype(dtype, device))
    with told() as progress:
        explained = look(loaded, caption, seed, steps, guidance_scale, known, unseen, progress)
    run = run_of(out, calibration)
    problem = write_picture(run, out, render(explained).encode(), caption)
    if run is not None and problem:
        say(f"{out}: `crossaudit purge` will not remove it: {problem}", err=True)
    typer.echo(str(out))
