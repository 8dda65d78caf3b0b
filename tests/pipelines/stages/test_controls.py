from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from audit.errors import AuditError
from audit.record.ledger import Ledger
from pipelines.configuration.settings import load_config
from pipelines.console.progress import Reporter
from pipelines.demo.demo import bundle
from pipelines.engine.context import Run
from pipelines.engine.manifest import Manifest, stored
from pipelines.reading import columns, input_files
from pipelines.stages import controls, ingest
from pipelines.steps.control_likeness import COMPARED
from tests.support.newspaper import newspaper
from tests.support.toy import MODEL


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An audit.yaml whose control captions are like a newspaper, and its captions those of the demo."""
    folder = tmp_path_factory.mktemp("unlike")
    captions = sorted(set(pq.read_table(bundle() / "captions.parquet")["caption"].to_pylist()))[::20]
    (folder / "captions.txt").write_text("\n".join(captions), "utf-8")
    (folder / "controls.txt").write_text("\n".join(newspaper(150)), "utf-8")
    settings = {
        "model": str(MODEL),
        "captions": "captions.txt",
        "calibration": {"captions": "controls.txt"},
        "select": {"budget": 0, "audit_sample": 0},
        "generate": {"seeds": [1], "steps": 1},
        "engine": {"workers": 0, "shard_rows": 64},
    }
    (folder / "audit.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    return folder / "audit.yaml"


def test_unlike_controls_stop_the_run_before_anything_is_screened(
    unlike: Path, tmp_path: Path, audited: Callable[..., str]
) -> None:
    with pytest.raises(AuditError, match=r"controls.txt: the control captions are unlike the dataset \(AUC 1.000") as e:
        audited(unlike, out=str(tmp_path / "run"))
    assert "--accept-unlike-controls" in str(e.value)
    manifest = stored(Ledger(str(tmp_path / "run")))
    assert manifest is not None
    assert manifest.calibration.likeness is not None
    assert manifest.calibration.likeness.auc > 0.99
    assert "despite" in [word.word for word in manifest.calibration.likeness.of_controls]
    assert set(manifest.stages) == {"ingest", "controls"}

    # The same run goes on once they are accepted, and withholds all p-values.
    uri = audited(unlike, "calibration.accept_unlike=true", out=str(tmp_path / "run"))
    ledger, manifest = Ledger(uri), stored(Ledger(uri))
    assert manifest is not None
    assert manifest.calibration.likeness.accepted
    assert manifest.calibration.p_unseen.startswith("withheld: the control captions are unlike the dataset")
    scores = ledger.read("scores")
    assert scores["score"].null_count == 0
    assert scores["p_unseen"].null_count == scores["q_unseen"].null_count == len(scores)
    assert "all p-values are withheld" in (tmp_path / "run/report.html").read_text("utf-8")


def compared(audit_yaml: Path, out: Path, *overrides: str) -> Run:
    """Return a run after the stages `ingest` and `controls`."""
    config, given = load_config(audit_yaml, ["calibration.accept_unlike=true", *overrides], str(out))
    config = columns.resolved(config)
    ledger = Ledger(config.out)
    run = Run(config, ledger, Manifest.open(ledger, config, given), Reporter())
    try:
        inputs = input_files.find_inputs(config)
        run.manifest.inputs(input_files.fingerprints(config, inputs))
        ingest.run(run, inputs)
        controls.run(run)
    finally:
        run.close()
    return run


def test_the_sample_is_the_same_whatever_the_parts(
    unlike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.steps import control_likeness, input_rows

    monkeypatch.setattr(control_likeness, "SAMPLE", 100)
    one = compared(unlike, tmp_path / "one")
    monkeypatch.setattr(ingest, "BUCKET_ROWS", 20)
    monkeypatch.setattr(input_rows, "BUCKET_ROWS", 20)
    many = compared(unlike, tmp_path / "many")
    assert len(many.ledger.parts("captions")) > len(one.ledger.parts("captions"))
    first, second = (run.ledger.read(COMPARED).sort_by("caption") for run in (one, many))
    assert first.equals(second)
    assert 60 < pc.sum(pc.invert(first["is_control"])).as_py() < 140
    assert one.manifest.data.calibration.likeness == many.manifest.data.calibration.likeness


def test_few_captions_are_not_tested_and_the_manifest_says_so(finished: Path) -> None:
    manifest = stored(Ledger(str(finished)))
    assert manifest is not None
    assert manifest.calibration.likeness.auc is None
    assert not manifest.calibration.likeness.unlike
    assert manifest.calibration.p_unseen == ""


def test_the_control_captions_that_give_p_values_have_scores(finished: Path) -> None:
    ledger, manifest = Ledger(str(finished)), stored(Ledger(str(finished)))
    scores = ledger.read("control_scores")
    assert manifest is not None
    assert len(scores) == manifest.calibration.held_out
    assert sum(stratum.controls for stratum in manifest.calibration.strata if stratum.kind == "length") == len(scores)
    assert pc.min(scores["p_unseen"]).as_py() > 0
    page = (finished / "report.html").read_text("utf-8")
    assert f"{len(scores)} control captions, scaled" in page
