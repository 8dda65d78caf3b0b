"""Speed comes out of a probe as it went in; FLOPs are those of the configured models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from audit.costs.flops import generation_cost, screen_cost
from audit.costs.meta_networks import outline_model
from audit.defaults import DEFAULT_DETECTOR
from audit.duplicates import cells
from pipelines.configuration.config import Config
from pipelines.configuration.settings import load_config
from pipelines.planning.probing import BLOCK, FEW, MORE, QUERIES, SpeedProbe, Timed
from pipelines.planning.speed import DECODED, Costs, Speed, assumed, costs_of, measured
from tests.support.toy import MODEL


@pytest.fixture(scope="module")
def config(make_dataset: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(make_dataset(tmp_path_factory.mktemp("data")))[0]


@pytest.fixture(scope="module")
def costs(config: Config) -> Costs:
    return costs_of(config)


def test_costs_are_those_of_the_configured_models(config: Config, costs: Costs) -> None:
    model = outline_model(MODEL)
    assert costs.screen == (screen_cost(model, [DEFAULT_DETECTOR]),)
    assert costs.generation == generation_cost(model, 7.5)
    assert costs.widths == (16,)
    assert costs.embed[0] > 0
    [one] = costs.screen
    assert costs.screened(10, 3, 2) == 10 * (one.text + 3 * one.row) + 2 * (one.text + 3 * one.unconditional)
    assert costs.generated(5, 2, 7) == 5 * (costs.generation.text + 2 * costs.generation.of(7))
    assert costs.searched(3, 1000) == 2 * 16 * 3 * 1000
    assert costs.clustered(1000, "exact") == 16 * 1000 * 1000
    assert costs.clustered(10**6, "ivf") == 2 * 16 * cells.products(10**6)


def test_a_reference_model_doubles_a_screen(config: Config, costs: Costs) -> None:
    both = costs_of(config.model_copy(update={"reference_model": config.model}))
    assert both.screened(10, 1, 1) == 2 * costs.screened(10, 1, 1)
    assert both.generated(1, 1, 1) == costs.generated(1, 1, 1)


def test_a_probe_gives_the_speed_that_it_was_made_with(config: Config, costs: Costs) -> None:
    speed = Speed(screen=1e9, step=2e9, rest=3e9, embed=4e9, search=5e9, cluster=6e9)
    cost = costs.generation

    def generated(units: int, steps: int) -> Timed:
        return Timed(units, units * (steps * cost.step / speed.step + (cost.text + cost.decode) / speed.rest))

    probe = SpeedProbe(
        Timed(64, costs.screened(64, 1, 1) / speed.screen),
        generated(32, FEW),
        generated(8, MORE),
        Timed(20, 20 * sum(costs.embed) / speed.embed),
        Timed(3, 2 * 16 * QUERIES * BLOCK * 3 / speed.search),
        Timed(2, 2 * 16 * BLOCK * BLOCK * 2 / speed.cluster),
    )
    found = measured(probe, costs, config)
    assert vars(found) == pytest.approx(vars(speed))
    seconds = 10 * 2 * 50 * cost.step / speed.step + 10 * (cost.text + 2 * cost.decode) / speed.rest
    assert found.generating(costs, 10, 2, 50) == pytest.approx(seconds)


def test_what_is_assumed_is_of_one_gpu_and_the_cores_decode(config: Config, costs: Costs) -> None:
    def of(cpus: int, gpus: float) -> Speed:
        engine = config.engine.model_copy(update={"cpus_per_worker": cpus, "gpus_per_worker": gpus})
        return assumed(2.0, costs, config.model_copy(update={"engine": engine}))

    assert of(1, 0).screen == of(1, 1).step == 2e12
    assert of(1, 0.5).rest == 1e12
    assert of(4, 1).search == 4 * of(1, 1).search
    assert of(4, 1).cluster == 4 * of(1, 1).cluster
    assert sum(costs.embed) / of(4, 1).embed == pytest.approx(1 / (4 * DECODED))
