"""A kohya folder of photographs with EXIF orientation is audited from the folder to the check and the clean copy."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

import audit
from audit.record.ledger import Ledger
from audit.schema import MATCHES
from reports.check import check
from tests.support.called import crossaudit
from tests.support.toy import CONTROL_CAPTIONS, CONTROL_TWIN, FEW, MEMORIZED, png, write_config

pytestmark = pytest.mark.slow

# EXIF tag 274: turned by 90 degrees.
ORIENTATION, TURNED = 274, 6


def turned(content: bytes) -> bytes:
    """The same stored pixels, with an orientation that a trainer may ignore."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    buffer = io.BytesIO()
    Image.open(io.BytesIO(content)).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def kohya(tmp_path_factory: pytest.TempPathFactory, weights: Path, planted: bytes, control_screen: pa.Table) -> Path:
    """Images in two subfolders, each beside its caption of the toy dataset; returns the audit.yaml."""
    tmp_path = tmp_path_factory.mktemp("kohya")
    captions = [MEMORIZED, *(f"picture {row} of a thing" for row in range(1, 38))]
    for row, caption in enumerate(captions):
        place = tmp_path / f"train/{row % 2 + 1}_thing"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row}.png").write_bytes(turned(planted if row == 0 else png(row)))
        (place / f"{row}.txt").write_text(f"{caption}\n", encoding="utf-8")
    (tmp_path / "control_captions.txt").write_text("\n".join([*CONTROL_CAPTIONS, CONTROL_TWIN]), encoding="utf-8")
    pq.write_table(control_screen, tmp_path / "control_screen.parquet")
    (tmp_path / "sscd.safetensors").write_bytes(weights.read_bytes())
    return write_config(tmp_path, captions="train/", images="train/")


@pytest.fixture(scope="module")
def out(kohya: Path, audited: Callable[..., str]) -> str:
    """The run."""
    return audited(kohya, *FEW)


def test_pixels_as_stored_are_found_and_the_accounting_closes(out: str) -> None:
    assert [result for result in check(out) if not result.ok] == []
    manifest = json.loads(Path(out, "manifest.json").read_text(encoding="utf-8"))
    assert manifest["accounting"]["pairs"] == {"rows": 38, "paired": 38, "applies": True}
    report = Path(out, "report.html").read_text("utf-8")
    assert "38 of 38 rows of the dataset are paired with their own image" in report
    matches = Ledger(out).dataset("matches", MATCHES).to_table()
    own = matches.filter(pc.equal(matches["caption_id"], audit.caption_id(MEMORIZED))).sort_by(
        [("similarity", "descending")]
    )
    best = own.slice(0, 1).to_pylist()[0]
    assert best["orientation"] == "stored"
    assert best["similarity"] == pytest.approx(1, abs=1e-3)


def test_the_clean_copy_lacks_only_the_excluded_images_and_their_captions(kohya: Path, out: str) -> None:
    train, clean = kohya.parent / "train", kohya.parent / "clean"
    exported = crossaudit("exclusions", out)
    assert exported.returncode == 0, exported.stderr
    rows = pq.read_table(Path(out, "exclusions.parquet")).to_pylist()
    captions = {row["file"] for row in rows if row["action"] == "drop"}
    assert "1_thing/0.txt" in captions
    assert len(captions) < 38
    applied = crossaudit("clean", f"{out}/exclusions.parquet", str(train), "--out", str(clean))
    assert applied.returncode == 0, applied.stderr
    gone = captions | {str(Path(name).with_suffix(".png")) for name in captions}
    before, after = contents(train), contents(clean)
    assert len(before) == 76
    assert after == {name: content for name, content in before.items() if name not in gone}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file, hidden ones included, by its path below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
