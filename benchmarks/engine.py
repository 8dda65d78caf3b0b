"""Measure the overhead of the engine with shards that only wait, using the schedule, pool, ledger and manifest.

python -m benchmarks.engine [--calls 64 --calls 256] [--waves 400] [--spread 0.5] [--plot overhead.svg]

The ideal time is the total waiting time divided by the number of concurrent calls. Without a spread, all shards take
equally long, so all calls end at the same time and queue again and again, which real shards do not. A call waits in an
asynchronous actor; a few actors hold many calls. It then writes its part as a worker does. Two cores must run the
driver, the actors and Ray.
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
    """Simulate as many workers as it has concurrent calls."""

    def __init__(self, seconds: float, spread: float) -> None:
        self._seconds, self._spread = seconds, spread

    async def prepare(self) -> dict[str, Any]:
        """Return no facts about models, as there are none to load."""
        return {}

    async def run(self, step: Step, shard: Shard, number: int) -> dict[str, int]:
        """Wait as long as the shard takes, then write its part."""
        await asyncio.sleep(lasts(shard, self._seconds, self._spread))
        return await asyncio.to_thread(step.commit, shard, [{"slept": TABLE}])


def lasts(shard: Shard, seconds: float, spread: float) -> float:
    """Return how long a shard takes.

    Args:
        shard: The shard, whose name decides the deviation.
        seconds: The mean time in seconds.
        spread: The maximum deviation, as a share of `seconds`.
    """
    return seconds * (1 + spread * (2 * zlib.crc32(shard.name.encode()) / 0xFFFFFFFF - 1))


@dataclass(frozen=True)
class Measured:
    """Hold one measurement.

    Attributes:
        calls: Concurrent calls.
        shards: Shards.
        overhead: Wall time relative to the ideal time, minus 1.
        driver_seconds: CPU seconds of the driver.
        memory: Memory of the driver in MiB at each tenth of the run.
        load: Load of the machine.
    """

    calls: int
    shards: int
    overhead: float
    driver_seconds: float
    memory: list[float]
    load: float


def main(
    calls: Annotated[
        list[int] | None, typer.Option(help="Concurrent calls. Repeat the option to measure several.")
    ] = None,
    waves: Annotated[int, typer.Option(help="Number of shards per concurrent call.")] = 60,
    seconds: Annotated[float, typer.Option(help="Mean time per shard.")] = 1.0,
    spread: Annotated[float, typer.Option(help="Maximum deviation from the mean time, as a share of it.")] = 0.0,
    plot: Annotated[Path | None, typer.Option(help="File for a plot of the overhead against the calls.")] = None,
) -> None:
    """Print one line per number of calls."""
    found = [measure(number, number * waves, seconds, spread) for number in calls or [16, 64, 256]]
    if plot:
        draw(found, seconds).savefig(plot)


def measure(calls: int, shards: int, seconds: float, spread: float) -> Measured:
    """Run shards that wait, and print and return the overhead.

    Args:
        calls: The number of concurrent calls.
        shards: The number of shards.
        seconds: The mean time per shard in seconds.
        spread: The maximum deviation from the mean time, as a share of it.
    """
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
        # A first wave of shards starts all processes.
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
        f"{used / shards * 1e3:.2f} ms of CPU per shard, {sizes} MiB; load {found.load:.1f}",
        flush=True,
    )
    return found


def draw(found: list[Measured], seconds: float) -> Figure:
    """Plot the overhead against the number of concurrent calls, for shards of `seconds`."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot([each.calls for each in found], [100 * each.overhead for each in found], "o-", color=DATA)
    axes.axhline(2, color=LINE, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel(f"Concurrent calls (shards of {seconds:g} s)")
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
