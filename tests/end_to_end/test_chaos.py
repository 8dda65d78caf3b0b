"""Workers, machines and drivers that are killed at any moment change nothing: real Ray, several nodes, fake GPUs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from hypothesis import settings
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from ray.cluster_utils import Cluster

from audit.record.ledger import Ledger, Shard
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.engine.pool import Pool
from pipelines.engine.remote_worker import RemoteWorker
from pipelines.engine.worker import Worker
from tests.support import driver, ray_cluster
from tests.support.called import crossaudit
from tests.support.paths import ROOT
from tests.support.processes import descendants, until
from tests.support.toy import write_config

pytestmark = pytest.mark.slow

# `make soak` raises the number of examples of hypothesis, and tries 80 seeds. Those that are odd kill a machine.
SOAK = settings.default.max_examples > 100
SEEDS, DRIVERS = (range(80), range(40)) if SOAK else ((1,), (0,))
NODE = {"num_cpus": 2, "num_gpus": 2}
WORKER = "ray::RemoteWorker"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster.cluster(num_cpus=0) as started:
        for _ in range(2):
            started.add_node(**NODE)
        yield started


@pytest.fixture
def connected(cluster: Cluster) -> Iterator[Cluster]:
    """This process is the driver."""
    ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
    yield cluster
    ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    """What one process makes of it without Ray."""
    ledger = Ledger(str(tmp_path_factory.mktemp("undisturbed")))
    worker = Worker(config_in(tmp_path_factory.mktemp("config"), ledger.uri))
    for shard in driver.write_captions(ledger):
        worker.run(driver.step(ledger), shard)
    return tables(ledger)


def config_in(folder: Path, out: str, **engine: Any) -> Any:
    return load_config(write_config(folder, engine=engine, out=out))[0]


def tables(ledger: Ledger) -> dict[str, pa.Table]:
    return {name: ledger.read(name).sort_by("caption_id") for name in ("digests", "errors")}


def pool(config: Any, workers: tuple[int, int], retries: int = 2) -> Pool:
    actor = ray.remote(RemoteWorker).options(num_gpus=0.5, num_cpus=0)
    return Pool(lambda: actor.remote(config), workers, retries)


def kill_worker(cluster: Cluster, rng: random.Random) -> None:
    rng.choice(descendants(WORKER)).kill()


def kill_node(cluster: Cluster, rng: random.Random) -> None:
    """Kill a machine that has a worker. If it was the last one, another takes its place."""
    raylet = rng.choice(descendants(WORKER)).ppid()
    [node] = [
        node
        for node in cluster.worker_nodes
        if raylet in (info.process.pid for info in node.all_processes[PROCESS_TYPE_RAYLET])
    ]
    cluster.remove_node(node, allow_graceful=False)
    if not cluster.worker_nodes:
        cluster.add_node(**NODE)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_killed_worker_or_machine_changes_nothing(
    connected: Cluster, undisturbed: dict[str, pa.Table], tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    kill = (kill_worker, kill_node)[seed % 2]
    moment = rng.randrange(1, 9)
    ledger = Ledger(str(tmp_path / "run"))
    shards = driver.write_captions(ledger)
    workers = pool(config_in(tmp_path, ledger.uri), (1, 2))
    done: list[Shard] = []
    for shard, _ in chain.from_iterable(workers.map(driver.step(ledger), shards)):
        done.append(shard)
        if len(done) == moment:
            kill(connected, rng)
    workers.close()
    assert sorted(shard.name for shard in done) == [shard.name for shard in shards]
    assert tables(ledger) == undisturbed


@pytest.mark.soak
@pytest.mark.parametrize("count", [1, 2, 8])
def test_any_number_of_workers_gives_the_same(
    connected: Cluster, undisturbed: dict[str, pa.Table], tmp_path: Path, count: int
) -> None:
    ledger = Ledger(str(tmp_path / "run"))
    shards = driver.write_captions(ledger)
    workers = pool(config_in(tmp_path, ledger.uri), (count, count))
    assert len(list(chain.from_iterable(workers.map(driver.step(ledger), shards)))) == len(shards)
    workers.close()
    assert tables(ledger) == undisturbed


@pytest.mark.parametrize("seed", DRIVERS)
def test_a_killed_driver_is_followed_by_one_that_ends_the_run(
    cluster: Cluster, undisturbed: dict[str, pa.Table], tmp_path: Path, seed: int
) -> None:
    """Before, a worker dies. The driver prints nothing of it, although Ray by itself would on standard output."""
    moment = random.Random(seed).randrange(1, 10)
    ledger = Ledger(str(tmp_path / "run"))
    engine = {"address": cluster.address, "gpus_per_worker": 0.5, "workers": 1}
    path = write_config(tmp_path, engine=engine, out=ledger.uri)
    command = [sys.executable, "-m", "tests.support.driver", str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until(lambda: bool(ledger.parts("digests")), lambda: process.poll() is None)
        [worker] = descendants(WORKER)
        worker.kill()
        until(lambda: len(ledger.parts("digests")) > moment, lambda: process.poll() is None)
        process.kill()
        printed, _ = process.communicate()
    assert "worker died" not in printed
    driver.main(str(path))
    assert tables(ledger) == undisturbed
    assert not list(Path(ledger.uri).rglob("*.tmp"))


def test_a_shard_that_fails_on_another_machine_shows_its_traceback(cluster: Cluster, tmp_path: Path) -> None:
    """The driver is on the head, which has no room for workers."""
    engine = {"address": cluster.address, "gpus_per_worker": 0.5, "retries": 1}
    config, given = load_config(write_config(tmp_path, engine=engine, out=str(tmp_path / "run")))
    ledger = Ledger(config.out)
    with Run(config, ledger, Manifest.open(ledger, config, given), Reporter(), "info") as run:
        run.execute(driver.step(ledger, driver.refuse), driver.write_captions(ledger))
        run.manifest.finish()
    assert len(ledger.read("digests")) == len(driver.CAPTIONS) - 1
    code, output, _ = crossaudit("errors", ledger.uri, "--json")
    [cause] = json.loads(output)["causes"]
    assert (code, cause["errors"], cause["caption_id"]) == (0, 1, f"{driver.ODD:02d}")
    assert cause["message"] == f"ValueError: row {driver.ODD} is odd"
    assert "in refuse" in cause["traceback"]
    assert driver.__file__ in cause["traceback"]
    shown = crossaudit("errors", ledger.uri)[1]
    assert "digest, raised: ValueError: row # is odd" in shown
    assert "in refuse" in shown
    logs = {path.name: path.read_text() for path in Path(ledger.uri, "logs").iterdir()}
    assert {name.split("-")[1] for name in logs} == {"driver", "worker"}
    text = "".join(logs.values())
    for attempt in ("rows 6 to 8, attempt 1", "rows 6 to 8, attempt 2", "rows 7 to 8, attempt 2"):
        assert f"ERROR [digest, shard 00003, {attempt}] pipelines.console.logs: the attempt failed" in text
        assert f"WARNING [digest] pipelines.engine.schedule: shard 00003, {attempt}: raised: ValueError" in text
