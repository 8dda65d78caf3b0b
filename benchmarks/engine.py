"""What the engine costs: shards that only wait, through the run's own schedule, pool, ledger and manifest.

python -m benchmarks.engine [--calls 64 --calls 256] [--waves 400] [--spread 0.5] [--plot overhead.svg]

The ideal is the waiting alone, its sum over the calls. Without a spread all shards take equally long, so that all calls
end at once, again and again, and queue; no real shards do. A call waits in an asynchronous actor, of which few hold
many; it then writes its part as a worker does. Two cores must carry all of it: the driver, the actors and Ray.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import psutil
import pyarrow as pa
import ray
import typer
from matplotlib.figure import Figure

from audit.record.ledger import Ledger, Shard, slices
from pipelines.configuration.config import Config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.engine.pool import Pool
from pipelines.engine.ray_session import start_ray
from pipelines.engine.step import Step
from reports.figures import DATA, LINE

PROCESSES = 4
TABLE = pa.table({"row": pa.array([0], pa.int64())})


class Sleeper:
    """Stands for as many workers as it has calls at a time."""

    def __init__(self, seconds: float, spread: float) -> None:
        self._seconds, self._spread = seconds, spread

    async def prepare(self) -> dict[str, Any]:
        return {}

    async def run(self, step: Step, shard: Shard) -> dict[str, int]:
        await asyncio.sleep(lasts(shard, self._seconds, self._spread))
        return await asyncio.to_thread(step.commit, shard, [{"slept": TABLE}])


def lasts(shard: Shard, seconds: float, spread: float) -> float:
    """How long a shard takes: `seconds`, more or less by up to a share `spread`, as its name decides."""
    return seconds * (1 + spread * (2 * zlib.crc32(shard.name.encode()) / 0xFFFFFFFF - 1))


@dataclass(frozen=True)
class Measured:
    """`overhead`: of the wall time, over the ideal. `memory`: the driver's, in MiB, at each tenth of the way."""

    calls: int
    shards: int
    overhead: float
    driver_seconds: float
    memory: list[float]
    load: float


def main(
    calls: Annotated[list[int] | None, typer.Option(help="Calls at a time.")] = None,
    waves: Annotated[int, typer.Option(help="Shards, in multiples of the calls.")] = 60,
    seconds: Annotated[float, typer.Option(help="How long a shard takes.")] = 1.0,
    spread: Annotated[float, typer.Option(help="By which share of that shards differ.")] = 0.0,
    plot: Annotated[Path | None, typer.Option(help="Where to draw the overhead against the calls.")] = None,
) -> None:
    """Print a line for each number of calls."""
    found = [measure(number, number * waves, seconds, spread) for number in calls or [16, 64, 256]]
    if plot:
        draw(found, seconds).savefig(plot)


def measure(calls: int, shards: int, seconds: float, spread: float) -> Measured:
    start_ray(None, PROCESSES, 1, 0)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        sections = {"model": "none", "captions": "none", "calibration": {"captions": "none"}, "out": folder}
        config = Config.model_validate(sections)
        actor = ray.remote(Sleeper).options(num_cpus=1, max_concurrency=calls)
        actors = itertools.cycle([actor.remote(seconds, spread) for _ in range(PROCESSES)])
        pool = Pool(lambda: next(actors), (calls, calls), retries=0)
        run = Run(config, ledger, Manifest.open(ledger, config, {}), Reporter(), _pool=pool)
        step = Step("sleep", "slept", "shards", ledger, _no_work)
        # A first wave starts everything.
        run.execute(step, slices("first", None, calls, 1))
        memory: list[float] = []
        over = threading.Event()
        watch = threading.Thread(target=_watch, args=(memory, over))
        watch.start()
        began, used, load = time.monotonic(), time.process_time(), os.getloadavg()[0]
        todo = slices("", None, shards, 1)
        run.execute(step, todo)
        wall, used = time.monotonic() - began, time.process_time() - used
        over.set()
        watch.join()
        assert len(ledger.parts("slept")) == shards + calls
        run.close()
    overhead = wall * calls / sum(lasts(shard, seconds, spread) for shard in todo) - 1
    tenths = [memory[(len(memory) - 1) * tenth // 10] for tenth in range(11)]
    found = Measured(calls, shards, overhead, used, tenths, max(load, os.getloadavg()[0]))
    sizes = " ".join(f"{size:.0f}" for size in tenths)
    print(
        f"{calls} calls, {shards:,} shards of {seconds:g} s (spread {spread:g}): overhead {overhead:.1%}; driver "
        f"{used / shards * 1e3:.2f} ms of CPU a shard, {sizes} MiB; load {found.load:.1f}",
        flush=True,
    )
    return found


def draw(found: list[Measured], seconds: float) -> Figure:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([each.calls for each in found], [100 * each.overhead for each in found], "o-", color=DATA)
    axes.axhline(2, color=LINE, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel(f"Calls at a time, shards of {seconds:g} s")
    axes.set_ylabel("Overhead, % of the wall time")
    axes.set_ylim(bottom=0)
    return figure


def _no_work(worker: Any, shard: Shard) -> Any:
    raise NotImplementedError


def _watch(memory: list[float], over: threading.Event) -> None:
    process = psutil.Process()
    while True:
        memory.append(process.memory_info().rss / 2**20)
        if over.wait(0.5):
            return


if __name__ == "__main__":
    typer.run(main)
