"""A plan counts what a run then does, measures a real worker, and leaves nothing behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from audit.duplicates import cells
from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger
from pipelines.configuration.settings import load_config
from pipelines.demo.demo import bundle
from pipelines.planning import probing
from pipelines.planning.plan import make_plan
from pipelines.planning.workload import VALUE, Line
from tests.support.toy import CONTROL_CAPTIONS, MODEL, write_config

BUNDLE = bundle()


@pytest.fixture
def dataset(make_dataset: Callable[[Path], Path], tmp_path: Path) -> Path:
    return make_dataset(tmp_path)


def lines_of(path: Path, *overrides: str) -> dict[str, Line]:
    return {line.stage: line for line in make_plan(load_config(path, overrides)[0], tflops=1.0).work.lines()}


@pytest.mark.slow
def test_units_and_shards_are_those_of_the_run(dataset: Path, audited: Callable[..., str]) -> None:
    # Small parts of generations, which are matched several at once.
    overrides = ["generate.seeds=[1,2]", "generate.steps=1", "engine.shard_rows=8", "confirm.fresh_seeds=0"]
    overrides += ["select.audit_sample=3", "confirm.control_captions=4", "confirm.control_rate=0.5"]
    overrides.append("engine.keep_work=true")
    lines = lines_of(dataset, *overrides)
    ledger = Ledger(audited(dataset, *overrides))
    assert lines["ingest"].units == 40
    assert lines["screen"].units == 40
    assert (lines["ingest"].shards, lines["screen"].shards) == (len(ledger.parts("rows")), len(ledger.parts("screen")))
    assert (lines["embed"].units, lines["embed"].shards) == (40, len(ledger.parts("embeddings_sscd")))
    assert lines["cluster"].shards == len(ledger.parts("_image_links"))
    made = len(ledger.read("generations"))
    # The sample has two of the budget, and is drawn from 38 captions.
    assert made <= lines["generate"].units <= made + 5 * 2
    parts = len(ledger.parts("generations"))
    assert parts <= lines["generate"].shards <= parts + 5
    assert lines["confirm"].units == lines["generate"].units
    assert len(ledger.parts("matches")) <= lines["confirm"].shards <= len(ledger.parts("matches")) + 2
    assert lines["calibrate"].units == lines["calibrate"].shards == 0  # control_screen is given


@pytest.mark.slow
def test_a_real_worker_is_measured_and_nothing_is_written(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "SHORT", 0.1)
    before = sorted(dataset.parent.rglob("*"))
    config, _ = load_config(dataset)
    plan = make_plan(config)
    assert plan.probe is not None
    assert plan.probe.embed is not None
    assert plan.probe.embed.units == 20  # of the first file
    assert plan.probe.screen.units >= 16
    assert all(value > 0 for value in vars(plan.work.speed).values())
    assert sum(line.seconds for line in plan.work.lines()) > 0
    assert sorted(dataset.parent.rglob("*")) == before


def test_a_plan_needs_no_weights_if_speed_is_assumed(dataset: Path) -> None:
    model = dataset.parent / "model"
    shutil.copytree(MODEL, model, ignore=shutil.ignore_patterns("*.safetensors"))
    lines = lines_of(dataset, f"model={model}")
    assert lines == lines_of(dataset)
    assert not (dataset.parent / "run").exists()


@pytest.mark.slow
def test_where_there_is_no_gpu_the_error_says_what_to_do(dataset: Path) -> None:
    config, _ = load_config(dataset, ["engine.workers=1", "engine.gpus_per_worker=1"])
    with pytest.raises(UsageError, match="(?s)cannot measure a worker: a worker needs 1 GPU .*as --tflops"):
        make_plan(config)
    assert make_plan(config, tflops=40.0).probe is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=nothing", "no such model"),
        ("captions=nothing/*.parquet", "no file matches"),
        ("captions.caption=text", "no column 'text'"),
        ("calibration.captions=nothing.txt", "no such file"),
        ("screen.detectors=[entropy_trajectory]", "belongs to audit.generate"),
        ("confirm.sscd.weights=nothing.safetensors", "nothing.safetensors"),
    ],
)
def test_what_a_run_refuses_a_plan_refuses(dataset: Path, override: str, message: str) -> None:
    with pytest.raises(AuditError, match=message):
        lines_of(dataset, override)


@pytest.mark.slow
def test_the_configuration_decides_what_there_is_to_do(dataset: Path) -> None:
    plain = lines_of(dataset)
    assert list(plain) == ["ingest", "embed", "cluster", "calibrate", "screen", "generate", "confirm"]
    assert lines_of(dataset, "captions.sample=10")["screen"].units == 10
    two_seeds = lines_of(dataset, "screen.seeds=[0,1]", "calibration.screen=null")
    # The texts are encoded once for both seeds.
    assert two_seeds["screen"].seconds == pytest.approx(2 * plain["screen"].seconds, 0.05)
    eight_forwards = lines_of(dataset, "screen.detectors=[profile]", "calibration.screen=null")
    assert eight_forwards["screen"].seconds > 7 * plain["screen"].seconds
    small = lines_of(dataset, "screen.resolution=16", "calibration.screen=null")
    assert small["screen"].flops == pytest.approx(0.25 * (plain["screen"].flops or 0), rel=0.2)
    assert lines_of(dataset, "select.perturbation_margin=true")["perturb"].units == 9 * 30
    assert lines_of(dataset, "index.path=elsewhere")["embed"].seconds == 0
    path = write_config(dataset.parent, images=None)
    assert list(lines_of(path)) == ["ingest", "calibrate", "screen", "generate"]


def test_lists_take_time_and_disk_of_their_own(dataset: Path) -> None:
    exact, by_cells = (lines_of(dataset, f"index.type={kind}")["cluster"] for kind in ("exact", "ivf"))
    assert (exact.shards, by_cells.shards) == (1, 2)
    # So few images are in one list, and their vectors of 16 lie once more in that.
    assert by_cells.disk - exact.disk == pytest.approx(40 * 16 * VALUE)
    assert by_cells.flops is not None
    assert exact.flops is not None
    assert 40 * by_cells.flops == 2 * 16 * cells.products(40)
    assert 40 * exact.flops == 2 * 16 * 40 * 40 // 2


def test_fresh_seeds_stand_apart_and_grow_with_the_confirmed(dataset: Path) -> None:
    work = make_plan(load_config(dataset)[0], tflops=1.0).work
    one, hundred = work.fresh(1), work.fresh(100)
    assert one is not None
    assert hundred is not None
    assert (one.units, hundred.units) == (2, 200)
    assert hundred.seconds == pytest.approx(100 * one.seconds)
    assert hundred.flops == one.flops


def test_the_disk_that_a_screen_takes_is_foreseen() -> None:
    """The bundle has the screen of 2,223 control captions. The plan is an upper bound; most is ids and text."""
    wanted = (BUNDLE / "control_screen.parquet").stat().st_size
    assert wanted <= lines_of(BUNDLE / "audit.yaml")["calibrate"].disk <= 1.35 * wanted


def test_a_plan_reads_the_same_default_columns_as_a_run(dataset: Path, tmp_path: Path) -> None:
    for name in ("captions", "controls"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{thing}"}}\n' for thing in CONTROL_CAPTIONS))
    files = [f"captions={tmp_path}/captions.jsonl", f"calibration.captions={tmp_path}/controls.jsonl"]
    assert lines_of(dataset, *files)["ingest"].units == len(CONTROL_CAPTIONS)
