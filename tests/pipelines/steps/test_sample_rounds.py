"""With `select.until`, the sample is drawn round by round and stops at a bound, whatever the shards are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from audit.record.ledger import Ledger
from pipelines.runs.recomputed_results import recompute
from pipelines.steps import sample_rounds
from reports.check import check

# About half of the generations are at least this similar to a training image.
SETTINGS = (
    "select.budget=2",
    "select.audit_sample=12",
    "confirm.control_captions=4",
    "confirm.control_rate=0.5",
    "confirm.fresh_seeds=0",
    "confirm.sscd.min_similarity_verbatim=0.9964",
)


@pytest.fixture
def sampled_until(toy: Path, audited: Callable[..., str], tmp_path: Path) -> Callable[..., tuple[Ledger, Any]]:
    """Return a function that audits the toy data with a sample that stops, and returns the run and its manifest."""

    def run(until: str, *settings: str) -> tuple[Ledger, Any]:
        settings = (f"select.until={until}", *SETTINGS, *settings)
        out = audited(toy / "audit.yaml", *settings, out=str(tmp_path / "run"))
        return Ledger(out), json.loads((tmp_path / "run" / "manifest.json").read_text())

    return run


@pytest.fixture(autouse=True)
def _small_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_rounds, "SIZE", 4)


def sample_of(ledger: Ledger) -> list[str]:
    scores = ledger.read("scores")
    return sorted(scores.filter(pc.equal(scores["selected_by"], "sample"))["caption_id"].to_pylist())


def test_sampling_stops_at_the_bound_and_the_run_is_whole(sampled_until: Callable[..., Any]) -> None:
    ledger, manifest = sampled_until("900000 per million", "engine.keep_work=true")
    sample, drawn = sample_of(ledger), ledger.read(sample_rounds.DRAWN, "00000")["caption_id"].to_pylist()
    assert 0 < len(sample) < 12
    assert len(sample) % 4 == 0
    assert sample == sorted(drawn[: len(sample)])
    assert manifest["selection"]["audit_sample"] == len(sample)
    evidence = manifest["claims"]["evidence"]
    assert (evidence["until"], evidence["sample_limit"]) == (0.9, 12)
    assert evidence["sample"]["captions"] == len(sample)
    assert "until a bound was reached" in manifest["claims"]["sentences"][0]
    checks = [*check(ledger.uri), *recompute(ledger.uri)]
    assert [result.name for result in checks if not result.ok] == []


def test_sampling_also_stops_once_more_than_the_bound_is_certain(sampled_until: Callable[..., Any]) -> None:
    ledger, manifest = sampled_until("1 per million", "engine.shard_rows=8")
    assert len(sample_of(ledger)) < 12
    assert manifest["claims"]["evidence"]["sample"]["flagged"] > 0


def test_a_bound_that_is_neither_kept_nor_exceeded_takes_the_whole_sample(sampled_until: Callable[..., Any]) -> None:
    ledger, _ = sampled_until("300000 per million")
    assert len(sample_of(ledger)) == 12
