"""Held-out pairs measure the confirm step, and are no training images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.compute as pc
import pytest

import audit
from audit.errors import AuditError
from audit.record.ledger import Ledger
from audit.statistics.intervals import upper_bound
from reports.check import check
from tests.support.toy import FEW, MEMORIZED, MODEL, png, write_tar

pytestmark = pytest.mark.slow

REPRODUCED = "a picture that looks like what its caption makes"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four pairs, of which the model resembles one, a caption of the dataset, and a sample without an image."""
    [alike] = audit.generate(audit.load_model(MODEL), [REPRODUCED], seeds=[1], steps=2)["image"].to_pylist()
    texts = [REPRODUCED, *(f"held-out picture {n}" for n in range(3)), MEMORIZED]
    members = []
    for number, text in enumerate(texts):
        members += [(f"{number}.png", png(900 + number) if number else alike), (f"{number}.txt", text.encode())]
    # The name and the rows of a file of training images, which must not be mistaken for these.
    write_tar(tmp_path / "00000.tar", [*members, ("9.txt", b"no image")])
    return tmp_path / "00000.tar"


def test_held_out_pairs_are_judged_with_their_own_images_and_change_no_verdict(
    toy: Path, few: Path, pairs: Path, audited: Callable[..., str], tmp_path: Path
) -> None:
    run = Ledger(audited(toy / "audit.yaml", *FEW, f"calibration.pairs={pairs}", out=str(tmp_path / "run")))
    plain = Ledger(str(few))
    for table in ("verdicts", "embeddings_sscd", "copied_images"):
        assert run.read(table).equals(plain.read(table))
    found = run.read("held_out_pairs").to_pylist()
    # Half as many as control captions are generated.
    assert {row["caption"] for row in found} == {REPRODUCED, "held-out picture 2"}
    matches = run.read("matches").filter((pc.field("purpose") == "pair") & (pc.field("rank") <= 5)).to_pylist()
    own = {(row["caption_id"], row["image_id"]) for row in found}
    assert own <= {(row["caption_id"], row["image_id"]) for row in matches}
    held_out = {row["image_id"] for row in found}
    assert held_out.isdisjoint(run.read("matches").filter(pc.field("purpose") != "pair")["image_id"].to_pylist())
    error = json.loads(run.read_bytes("manifest.json") or b"")["confirm_error"]
    assert (error["pairs"], error["pairs_confirmed"]) == (2, 1)
    assert error["pairs_high"] == upper_bound(1, 2)
    assert [result for result in check(run.uri) if not result.ok] == []


def test_pairs_of_which_none_can_be_used_are_refused(toy: Path, audited: Callable[..., str], tmp_path: Path) -> None:
    write_tar(tmp_path / "pairs.tar", [("0.png", png(1)), ("0.txt", MEMORIZED.encode())])
    with pytest.raises(AuditError, match="no held-out pair has both a caption and an image"):
        audited(toy / "audit.yaml", f"calibration.pairs={tmp_path / 'pairs.tar'}", out=str(tmp_path / "run"))
