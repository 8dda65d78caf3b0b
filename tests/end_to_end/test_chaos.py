"""Workers, machines and drivers that are killed at any moment change nothing: real Ray, several nodes, fake GPUs."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import ray
from hypothesis import settings
from ray.cluster_utils import Cluster

from audit.record.ledger import Ledger, Shard
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest
from pipelines.engine.pool import Pool
from pipelines.engine.ray_token import private_token
from pipelines.engine.remote_worker import RemoteWorker
from pipelines.engine.step import Step
from pipelines.engine.worker import Worker
from pipelines.stages import screen
from reports.check import check
from tests.support import driver
from tests.support.called import crossaudit
from tests.support.comparison import same
from tests.support.paths import ROOT
from tests.support.processes import until
from tests.support.toy import write_config

pytestmark = pytest.mark.slow

# `make soak` raises the number of examples of hypothesis, and tries 80 seeds and more workers.
SOAK = settings.default.max_examples > 100
SEEDS, WORKERS = (range(80), (1, 2, 8)) if SOAK else (range(2), (2,))
NODE = {"num_cpus": 2, "num_gpus": 2}
# A machine that is silent for a second is dead, and no process is started before it is needed.
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 300,
    "health_check_failure_threshold": 3,
    "prestart_worker_first_driver": False,
    "enable_worker_prestart": False,
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        private_token()  # a run uses a cluster with a token only
        found = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK},
        )
        nodes = [found.add_node(**NODE) for _ in range(2)]
        assert len(nodes) == 2
        yield found
        found.shutdown()


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


def workers_of(root: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in root.children(recursive=True):
        try:
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::RemoteWorker"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_worker(cluster: Cluster, rng: random.Random) -> None:
    rng.choice(workers_of(psutil.Process())).kill()


def kill_node(cluster: Cluster, rng: random.Random) -> None:
    """Another takes its place."""
    cluster.remove_node(rng.choice([node for node in cluster.list_all_nodes() if not node.head]), False)
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
    workers = pool(config_in(tmp_path, ledger.uri), (1, 3))
    done: list[Shard] = []
    for shard, _ in chain.from_iterable(workers.map(driver.step(ledger), shards)):
        done.append(shard)
        if len(done) == moment:
            kill(connected, rng)
    workers.close()
    assert sorted(shard.name for shard in done) == [shard.name for shard in shards]
    assert tables(ledger) == undisturbed


@pytest.mark.parametrize("count", WORKERS)
def test_any_number_of_workers_gives_the_same(
    connected: Cluster, undisturbed: dict[str, pa.Table], tmp_path: Path, count: int
) -> None:
    ledger = Ledger(str(tmp_path / "run"))
    shards = driver.write_captions(ledger)
    workers = pool(config_in(tmp_path, ledger.uri), (count, count))
    assert len(list(chain.from_iterable(workers.map(driver.step(ledger), shards)))) == len(shards)
    workers.close()
    assert tables(ledger) == undisturbed


@pytest.mark.parametrize("seed", SEEDS[: len(SEEDS) // 2])
def test_a_killed_driver_is_followed_by_one_that_ends_the_run(
    cluster: Cluster, undisturbed: dict[str, pa.Table], tmp_path: Path, seed: int
) -> None:
    moment = random.Random(seed).randrange(10)
    ledger = Ledger(str(tmp_path / "run"))
    engine = {"address": cluster.address, "workers": {"min": 1, "max": 3}, "gpus_per_worker": 0.5}
    path = write_config(tmp_path, engine=engine, out=ledger.uri)
    command = [sys.executable, "-m", "tests.support.driver", str(path)]
    with subprocess.Popen(command, cwd=str(ROOT)) as process:
        until(lambda: len(ledger.parts("digests")) > moment, process)
        process.kill()
    subprocess.run(command, cwd=str(ROOT), check=True)
    assert tables(ledger) == undisturbed
    assert not list(Path(ledger.uri).rglob("*.tmp"))


def test_a_shard_that_is_taken_apart_around_a_deadly_row_scores_the_others_the_same(
    connected: Cluster, tmp_path: Path
) -> None:
    ledger = Ledger(str(tmp_path / "run"))
    shards = [Shard("00000", "00000", 6, 8)]
    assert driver.write_captions(ledger)
    config = config_in(tmp_path, ledger.uri)
    # Without `needs`, a worker loads the model when it screens. Those that end before do not take the time.
    step = Step("screen", "screen", "captions", ledger, driver.screen, partial(screen._on_lost_row, seeds=[0]))
    workers = pool(config, (1, 1), retries=0)
    assert [counts for _, counts in chain.from_iterable(workers.map(step, shards))] == [{"screen": 2, "errors": 1}]
    workers.close()
    whole = screen._screen(Worker(config), shards[0])["screen"].to_pylist()
    for found, expected in zip(ledger.read("screen").to_pylist(), whole, strict=True):
        if found["caption_id"] == f"{driver.ODD:02d}":
            assert (found["status"], found["caption_response"]) == ("error", None)
        else:
            assert found["caption_response"] == pytest.approx(expected["caption_response"], abs=2e-5)
    [error] = ledger.read("errors").to_pylist()
    assert (error["kind"], error["caption_id"]) == ("worker_died", f"{driver.ODD:02d}")


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


def test_a_whole_audit_survives_the_loss_of_a_worker_a_machine_and_the_driver(
    cluster: Cluster, toy: Path, finished: Path, audited: Callable[..., str], tmp_path: Path
) -> None:
    ledger = Ledger(str(tmp_path / "run"))
    engine = {"address": cluster.address, "workers": "{min: 1, max: 2}", "retries": 2}
    chosen = [part for key, value in engine.items() for part in ("--set", f"engine.{key}={value}")]
    command = [sys.executable, "-m", "pipelines.cli", "run", str(toy / "audit.yaml"), "--out", ledger.uri, *chosen]
    rng = random.Random(0)
    with subprocess.Popen(command, cwd=str(ROOT)) as process:
        until(lambda: bool(ledger.parts("embeddings_sscd")), process)
        kill_worker(cluster, rng)
        until(lambda: bool(ledger.parts("screen")), process)
        kill_node(cluster, rng)
        until(lambda: bool(ledger.parts("generations")), process)
        process.kill()
    assert ledger.parts("generations")
    assert not ledger.parts("verdicts")
    # Without Ray: that a driver on the cluster ends the run of a killed one is shown above.
    audited(toy / "audit.yaml", out=ledger.uri)
    same(Ledger(str(finished)), ledger)
    assert [result for result in check(ledger.uri) if not result.ok] == []
