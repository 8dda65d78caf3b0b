"""Rows find their own images, and a run in which too few do stops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit.errors import UsageError
from audit.record.manifest_entries import PairCounts
from tests.support.ingested import ingested
from tests.support.toy import png, write_config

pytestmark = pytest.mark.slow


def imagefolder(folder: Path, there: int) -> Path:
    """Write an imagefolder of six nested images, whose metadata names so many of them; return its audit.yaml."""
    train = folder / "train"
    (train / "sub").mkdir(parents=True)
    lines = []
    for k in range(6):
        (train / f"sub/{k}.png").write_bytes(png(k))
        lines.append(json.dumps({"file_name": f"sub/{k}.png" if k < there else f"no/{k}.png", "text": f"a thing {k}"}))
    (train / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "control_captions.txt").write_text("a river\n")
    (folder / "sscd.safetensors").write_bytes(b"")
    captions = {"path": str(train / "metadata.jsonl"), "caption": "text"}
    return write_config(
        folder, captions=captions, images=f"{train}/**", calibration={"captions": "control_captions.txt"}
    )


def test_an_imagefolder_pairs_by_file_name(tmp_path: Path) -> None:
    run = ingested(imagefolder(tmp_path, 6), tmp_path / "run")
    assert run.manifest.data.accounting.pairs == PairCounts(rows=6, paired=6, applies=True)


def test_too_few_pairs_stop_the_run_with_examples_of_both_sides(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 of 6 rows .*'no/2.png'.*images without a row: sub/2.png") as error:
        ingested(imagefolder(tmp_path, 2), tmp_path / "run")
    assert "images.min_paired" in str(error.value)
