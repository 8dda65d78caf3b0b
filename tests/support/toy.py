"""Make the parts of a dataset that can be audited in seconds: random images, and the tiny model in tests/data."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from audit.record.ledger import Ledger
from audit.schema import CAPTIONS, VERDICTS
from tests.support.manifests import manifest
from tests.support.paths import DATA

MODEL = DATA / "toy-model"
CONTROL_CAPTIONS = [f"{thing} number {number}" for thing in ("lamp", "river", "coat") for number in range(24)]
MEMORIZED = "a planted picture"
# The settings of an audit with few generations. With this seed, the sample contains MEMORIZED.
FEW_GENERATIONS = {
    "select": {"budget": 2, "audit_sample": 3, "seed": 14},
    "confirm": {"control_captions": 4, "control_rate": 0.5, "fresh_seeds": 1},
}
# The same as overrides.
FEW = tuple(f"{section}.{key}={value}" for section, keys in FEW_GENERATIONS.items() for key, value in keys.items())
# The dataset contains it with other case and punctuation, so it must not count as a control caption.
CONTROL_TWIN = "Picture 3, of a thing!"


def png(seed: int, size: int = 32) -> bytes:
    """Return a PNG that is different for each seed, with smooth colours and no noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return encode(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def encode(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    """Write a tar of (name, content) pairs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, columns: dict[str, Any]) -> None:
    """Write a Parquet file with 16 rows per row group."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=16)


def settings_of(**changes: Any) -> dict[str, Any]:
    """Return the settings of an audit.yaml. A change replaces a whole section."""
    settings: dict[str, Any] = {
        "model": str(MODEL),
        "captions": "captions/*.parquet",
        "images": "images/*.tar",
        "calibration": {"captions": "control_captions.txt", "screen": "control_screen.parquet"},
        "select": {"budget": 5, "audit_sample": 25, "seed": 1},
        "generate": {"seeds": [1], "steps": 2},
        "confirm": {
            "fresh_seeds": 2,
            "control_captions": 38,
            "control_rate": 0.05,
            "sscd": {"weights": "sscd.safetensors", "min_similarity_region": 0.9999},
        },
        "engine": {"workers": 0, "shard_rows": 32, "retries": 0},
        "out": "run",
    }
    return settings | changes


def write_config(folder: Path, **changes: Any) -> Path:
    """Write `settings_of(**changes)` to audit.yaml in `folder`, and return its path."""
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump(settings_of(**changes)), encoding="utf-8")
    return path


def judged(uri: str, texts: dict[str, str], score: float) -> str:
    """Write the tables and the manifest of a run whose captions all have the verdict `not_selected`.

    Args:
        uri: Where to write the run.
        texts: The captions by caption_id.
        score: The score of each caption.

    Returns:
        The path or URI of the run.
    """
    ledger = Ledger(uri)
    captions = [{"caption_id": name, "caption": text, "row_count": 1} for name, text in texts.items()]
    verdicts = [row | {"verdict": "not_selected", "risk": "none", "score": score} for row in captions]
    filled = [{name: row.get(name) for name in VERDICTS.names} for row in verdicts]
    ledger.write("captions", "00000", pa.Table.from_pylist(captions, schema=CAPTIONS))
    ledger.write("verdicts", "00000", pa.Table.from_pylist(filled, schema=VERDICTS))
    parts = {table: {"00000.parquet": len(texts)} for table in ("captions", "verdicts")}
    accounting = {"input_rows": len(texts), "sampled_out": 0}
    ledger.write_bytes("manifest.json", json.dumps(manifest(parts=parts, accounting=accounting)).encode())
    return ledger.uri
