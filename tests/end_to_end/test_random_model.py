"""A model with random weights cannot have memorized anything: an audit with default settings finds nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from audit.record.ledger import Ledger
from pipelines.demo.demo import bundle
from reports.check import check
from tests.support.toy import MODEL, png, write_parquet, write_tar

pytestmark = pytest.mark.slow

SEEDS = (1, 101)
CAPTIONS, CONTROLS = 24, 99


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and captions that the tiny model has never seen, and the shipped descriptor, whose floor was measured."""
    folder = tmp_path_factory.mktemp("random")
    keys = [f"{row:04d}" for row in range(CAPTIONS)]
    captions = [f"picture {key} of a thing" for key in keys]
    write_parquet(folder / "captions/00000.parquet", {"caption": captions, "key": keys})
    write_tar(folder / "images/00000.tar", [(f"{key}.png", png(row)) for row, key in enumerate(keys)])
    controls = [f"{thing} number {n}" for thing in ("lamp", "river", "coat") for n in range(CONTROLS // 3)]
    (folder / "controls.txt").write_text("\n".join(controls), encoding="utf-8")
    return folder


def run_with(dataset: Path, audited: Callable[..., str], seed: int, first: Path | None) -> Ledger:
    """Run an audit with this seed. The second audit reuses the vectors and screened control captions of the first."""
    settings = {
        "model": str(MODEL),
        "captions": "captions/*.parquet",
        "images": "images/*.tar",
        "calibration": {"captions": "controls.txt"} | ({"screen": str(first / "control_screen")} if first else {}),
        "select": {"budget": 10, "audit_sample": 4},
        "generate": {"seeds": [seed], "steps": 2},
        "confirm": {
            "sscd": {"weights": str(bundle() / "embedders/sscd.safetensors")},
            "control_captions": 38,
            "control_rate": 0.05,
        },
        "index": {"path": str(first)} if first else {},
        "engine": {"workers": 0},
        "out": f"run-{seed}",
    }
    path = dataset / f"audit-{seed}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return Ledger(audited(path))


def test_nothing_is_found_whatever_the_seeds(dataset: Path, audited: Callable[..., str]) -> None:
    first: Path | None = None
    for seed in SEEDS:
        run = run_with(dataset, audited, seed, first)
        first = first or Path(run.uri)
        verdicts = run.read("verdicts").to_pylist()
        assert {row["verdict"] for row in verdicts} <= {"unconfirmed", "not_selected"}
        assert {row["risk"] for row in verdicts} <= {"low", "none"}
        manifest = json.loads(run.read_bytes("manifest.json") or b"")
        for limit in manifest["thresholds"]["sscd"].values():
            assert limit["value"] is None or limit["value"] >= limit["floor"] > 0.5
        assert manifest["confirm_error"]["confirmed"] <= 1  # of 19, at a rate of 5 %
        assert [result for result in check(run.uri) if not result.ok] == []
    assert first is not None
    assert "Confirmed by mistake" in (first / "report.html").read_text("utf-8")
