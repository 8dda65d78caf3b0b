"""The command `crossaudit plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from audit.durations import duration
from pipelines.commands.options import ConfigFile, Overrides, Verbose, state

if TYPE_CHECKING:
    from rich.table import Table

    from pipelines.planning.plan import Plan
    from pipelines.planning.workload import Line
    from pipelines.reading.counting import Count

CONFIRMED = 100


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to `app`, in a panel of `crossaudit --help`."""
    app.command(rich_help_panel=panel, epilog="Example: crossaudit plan audit.yaml --gpus 8 --price 2.50")(plan)


def plan(
    config: ConfigFile,
    set_: Overrides = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Number of GPUs (on CPUs: workers). Default: `engine.workers`.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Dollars per GPU-hour (on CPUs: per core-hour).")] = None,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="Assume that a GPU sustains this many TFLOP/s, and measure nothing.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Estimate what an audit will cost (hours, dollars and disk space per stage) and what it will be able to claim.

    Counts rows from metadata and FLOPs from the models' configurations, and times
    one worker for about a minute. With --tflops it measures nothing, and needs
    neither a GPU nor weights. Writes nothing.
    """
    from audit.costs.expected_claims import of_audit_sample, of_control_captions
    from pipelines.configuration.settings import load_config
    from pipelines.console.progress import Reporter
    from pipelines.console.terminal import Console
    from pipelines.planning.plan import make_plan
    from pipelines.tables.selection import allowed

    settings, _ = load_config(config, set_ or [])
    made = make_plan(settings, tflops, Reporter(verbose=state.verbose))
    work, lines = made.work, made.work.lines()
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=100)
    rate = settings.confirm.control_rate if settings.images else None
    sample, budget = settings.select.audit_sample, allowed(settings.select.budget, work.captions)
    console.print(_list([*_inputs(made), *_speeds(made, tflops)]))
    console.print(_table(made, lines, work.fresh(CONFIRMED), price))
    console.print(_list(_notes(made, lines, gpus)))
    console.print("What the audit could claim", style="bold")
    console.print(
        _list(
            [
                *of_control_captions(work.control_captions, rate, work.captions),
                *of_audit_sample(sample, work.captions, budget, rate),
            ]
        )
    )


def _list(lines: list[str]) -> Table:
    """Return a list with a dash before each line, hanging indents, and an empty line at the end."""
    from rich.markup import escape
    from rich.table import Table

    from pipelines.console.terminal import visible

    table = Table.grid(padding=(0, 1, 0, 0))
    for line in lines:
        table.add_row("-", escape(visible(line)))
    table.add_row()
    return table


def _inputs(made: Plan) -> list[str]:
    work = made.work
    found = [f"captions: {_counted(work.rows, 'rows')}; at most {work.captions:,} captions, if all are distinct"]
    if work.rows.rows != work.captions:
        found[0] += " (captions.sample)"
    if work.images is not None:
        found.append(f"images: {_counted(work.images, 'images')}")
    return found


def _counted(count: Count, unit: str) -> str:
    files = f"{count.files:,} file{'s' if count.files > 1 else ''}"
    text = f"{count.rows:,} {unit} in {files}"
    if count.estimated:
        text = f"about {text} (estimated from the beginnings of {count.looked:,}; only Parquet stores its row count)"
    return text + (f"; {count.unreadable:,} cannot be read" if count.unreadable else "")


def _speeds(made: Plan, tflops: float | None) -> list[str]:
    work, probe = made.work, made.probe
    engine = work.config.engine
    cores = f"{engine.cpus_per_worker} core{'s' if engine.cpus_per_worker > 1 else ''}"
    worker = f"{engine.gpus_per_worker:g} GPU and {cores}" if engine.gpus_per_worker else cores
    height, width = work.costs.generation.size
    forwards = work.costs.screen[0].forwards * len(work.config.screen.seeds)
    found = [f"image size: {height} x {width} pixels (model.resolution)"]
    if work.config.select.until is not None:
        found.append("select.until may stop the audit sample early; the whole sample is counted")
    if work.config.select.budget.fdr is not None:
        found.append(f"select.budget.fdr selects as many captions as it can; {work.selected:,} are assumed")
    screening = f"screening takes {forwards} UNet forward{'s' if forwards > 1 else ''} per caption"
    if (resolution := work.config.screen.pixels()) is not None:
        height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
        screening += f", at {height} x {width} pixels (screen.resolution)"
    found.append(screening)
    if probe is None:
        found.append(
            f"assumed: {tflops:g} TFLOP/s sustained (--tflops), and our reference cores for reading images, search and "
            "clustering; nothing was measured"
        )
        return found
    costs, speed, steps = work.costs, work.speed, work.config.generate.steps
    generating = costs.generated(1, 1, steps) / speed.generating(costs, 1, 1, steps)
    took = [f"{probe.screen.units:,} captions screened in {probe.screen.seconds:.1f} s ({_si(speed.screen)}FLOP/s)"]
    took.append(f"{probe.more.units:,} images generated in {probe.more.seconds:.1f} s ({_si(generating)}FLOP/s)")
    if probe.embed:
        took.append(f"{probe.embed.units:,} images embedded in {probe.embed.seconds:.1f} s ({_si(speed.embed)}FLOP/s)")
        took.append(f"vectors searched at {_si(speed.search)}FLOP/s and clustered at {_si(speed.cluster)}FLOP/s")
    return [*found, f"measured on one worker ({worker}): {', '.join(took)}"]


def _table(made: Plan, lines: list[Line], fresh: Line | None, price: float | None) -> Table:
    from rich.table import Table

    engine = made.work.config.engine
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("stage", no_wrap=True)
    hours = "GPU-hours" if engine.gpus_per_worker else "core-hours"
    for name in ("units", "shards", "FLOPs each", hours, *(["dollars"] if price is not None else []), "disk"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(stage: str, units: str, shards: str, flops: str, seconds: float, disk: float, style: str = "") -> None:
        spent = seconds / 3600 * (engine.gpus_per_worker or engine.cpus_per_worker)
        cost = [] if price is None else [_number(spent * price)]
        table.add_row(stage, units, shards, flops, _number(spent), *cost, f"{_si(disk)}B", style=style)

    for line in lines:
        flops = "" if line.flops is None else _si(line.flops).strip()
        add(line.stage, f"{line.units:,} {line.unit}", f"{line.shards:,}", flops, line.seconds, line.disk)
    shards = sum(line.shards for line in lines)
    total, disk = sum(line.seconds for line in lines), sum(line.disk for line in lines)
    add("total", "", f"{shards:,}", "", total, disk, "bold")
    if fresh is not None:
        units, flops = f"{fresh.units:,} {fresh.unit}", _si(fresh.flops or 0).strip()
        table.add_row()
        add(f"+ per {CONFIRMED} confirmed", units, f"{fresh.shards:,}", flops, fresh.seconds, fresh.disk)
    table.add_row()
    return table


def _notes(made: Plan, lines: list[Line], gpus: int | None) -> list[str]:
    engine = made.work.config.engine
    seconds = sum(line.seconds for line in lines)
    workers: float = max(engine.workers.max, 1)
    what = f"{workers:g} worker{'s' if workers > 1 else ''}"
    if gpus is not None:
        workers = gpus / (engine.gpus_per_worker or 1)
        what = f"{gpus:,} {'GPUs' if engine.gpus_per_worker else 'workers'}"
    found = [
        f"with {what} the audit takes {duration(seconds / workers)}, not counting loading, select, judge and report"
    ]
    if engine.gpus_per_worker:
        found.append(
            "a worker holds its GPU in all stages, even in those that use only the CPU (ingest, cluster, search)"
        )
    by = {line.stage: line.seconds for line in lines}
    exact = made.work.config.index.type == "exact"
    if by.get("cluster", 0) > seconds / 2 and exact:
        found.append(
            "the stage cluster takes most of the time, because it compares every pair of images; with index.type: ivf "
            "it compares only images that share a cell"
        )
    if not exact:
        found.append("the time to build and search the inverted file is not counted")
    return found


def _si(value: float) -> str:
    """Format a value with three digits, a space and an SI prefix."""
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    at = 0
    while value >= 999.5 and at < len(prefixes) - 1:
        value, at = value / 1000, at + 1
    return f"{value:.3g} {prefixes[at]}"


def _number(value: float) -> str:
    """Format a value with three digits, or as "< 0.01"."""
    if 0 < value < 0.01:
        return "< 0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
