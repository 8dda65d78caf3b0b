"""A picture looked up in a finished run, and one of its cases generated again."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger
from pipelines.runs.lookup import nearest_images
from pipelines.runs.reproduce import reproduce
from tests.support.called import crossaudit
from tests.support.changed_run import change_manifest
from tests.support.toy import MEMORIZED, png

pytestmark = pytest.mark.slow


def evidence(run: Path) -> dict[str, object]:
    return Ledger(str(run)).read("evidence").to_pylist()[0]


def test_a_training_image_is_found_as_the_picture_that_it_is(finished: Path, tmp_path: Path) -> None:
    image = evidence(finished)
    (tmp_path / "mine.png").write_bytes(image["image"])  # type: ignore[arg-type]
    found = nearest_images(str(finished), image["image"], "mine.png").to_pylist()  # type: ignore[arg-type]
    assert found[0]["image_id"] == image["image_id"]
    assert found[0]["similarity"] == pytest.approx(1, abs=1e-3)
    assert found[0]["same"] is not None
    done = crossaudit("lookup", str(finished), "--image", str(tmp_path / "mine.png"))
    assert done.returncode == 0
    assert MEMORIZED in done.stdout
    assert "the model copied such an image" in done.stdout


def test_what_is_no_image_or_no_training_image_is_said(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="cannot be read as an image"):
        nearest_images(str(finished), b"no image", "text.png")
    done = crossaudit("lookup", str(finished), "--text", "x", "--host", "y")
    assert done.returncode == 2
    assert "one of" in done.stderr
    other = nearest_images(str(finished), png(12345), "other.png")
    assert "bytes" not in other["same"].to_pylist()
    missing = crossaudit("lookup", str(finished), "--image", str(tmp_path / "none.png"))
    assert missing.returncode == 1
    assert f"{tmp_path / 'none.png'}: cannot be read: No such file or directory" in missing.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_run_on_gpus_is_looked_up_and_reproduced_without_one(own: Path) -> None:
    resolved = json.loads((own / "manifest.json").read_text())["resolved"]
    resolved["engine"]["gpus_per_worker"] = 1
    change_manifest(own, resolved=resolved, device="cuda")
    assert nearest_images(str(own), evidence(own)["image"], "mine.png").num_rows  # type: ignore[arg-type]
    assert reproduce(str(own), MEMORIZED).agrees


def test_a_case_generated_again_agrees_with_the_record(own: Path, tmp_path: Path) -> None:
    found = reproduce(str(own), MEMORIZED)
    assert found.agrees
    assert found.difference is not None
    assert found.similarity == pytest.approx(found.recorded, abs=1e-2)
    done = crossaudit("reproduce", str(own), MEMORIZED, "--out", str(tmp_path / "case.png"))
    assert done.returncode == 0
    assert "agrees with the record" in done.stdout
    assert (tmp_path / "case.png").read_bytes() == found.image
    with pytest.raises(UsageError, match="no confirmed caption"):
        reproduce(str(own), "a caption that nobody has")


def test_a_case_that_does_not_agree_says_so(own: Path) -> None:
    ledger = Ledger(str(own))
    for name, part in list(ledger.each("generations")):
        other = pc.if_else(pc.equal(part["purpose"], "discover"), pa.scalar(png(3)), part["image"])
        at = part.schema.get_field_index("image")
        ledger.write("generations", name, part.set_column(at, part.schema.field(at), other))
    assert not reproduce(str(own), MEMORIZED).agrees


def test_another_model_is_refused(own: Path) -> None:
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["models"]["model"]["unet"] = "0" * 64
    (own / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AuditError, match="model: unet has changed"):
        reproduce(str(own), MEMORIZED)
