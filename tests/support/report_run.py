"""Write a small finished run with every verdict and with hostile captions, made with the real schemas."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from audit import schema
from audit.duplicates.captions import caption_id
from audit.statistics.claims import claims
from audit.verdicts.copies import LINKS, copied_images
from audit.verdicts.judging import ImageCounts, judge
from audit.verdicts.thresholds import Threshold, choose_threshold, control_maxima
from tests.support.manifests import manifest as manifest_of
from tests.support.report_manifest import CALIBRATION, INPUT, READ, SEEDS, stages
from tests.support.toy import encode

HOSTILE = "<script>alert('caption')</script> & \"quotes\""
BIDI = "a cat \u202egnp.tac\u202c in a hat\u0007"
TEMPLATES = [
    f"phone case with a {thing}, product photo" for thing in ("fox", "moon", "rose", "whale", "kite", "leaf", "bee")
]
SHARED = ["waving hand", "waving hand: light skin tone", "hand that waves", "a waving hand, 3D render"]
SINGLE = [
    HOSTILE,
    BIDI,
    "slice of pizza",
    "red apple",
    "the Eiffel tower at night, oil on canvas, by an unknown painter",
]
FAILED, UNKNOWN = "a caption that failed", "a caption whose image is broken"
CALM = [f"ordinary caption number {i}" for i in range(300)]
CONTROL_CAPTIONS = [f"control {i}" for i in range(200)]
GENERATED_CONTROLS = CONTROL_CAPTIONS[:100]
CAPTIONS = SINGLE + SHARED + TEMPLATES + [FAILED, UNKNOWN] + CALM
DETECTORS = ["entropy_single_step"]
SCHEMAS: dict[str, pa.Schema] = {
    "rows": schema.ROWS,
    "captions": schema.CAPTIONS,
    "caption_groups": schema.CAPTION_GROUPS,
    "control_screen": schema.control_screen(DETECTORS),
    "screen": schema.screen(DETECTORS),
    "scores": schema.SCORES,
    "perturbations": schema.PERTURBATIONS,
    "generations": schema.generations([*DETECTORS, "token_attention"]),
    "matches": schema.MATCHES,
    "evidence": schema.EVIDENCE,
    "errors": schema.ERRORS,
    "embeddings_sscd": schema.embeddings(4),
    "embeddings_clip": schema.embeddings(4),
    "image_clusters": schema.IMAGE_CLUSTERS,
}


def picture(seed: int, size: int = 64, part: int | None = None) -> Image.Image:
    """Draw a few shapes on white; `part` fixes those of the lower half."""
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for half, rng in ((0, np.random.default_rng(seed)), (1, np.random.default_rng(seed if part is None else part))):
        for _ in range(4):
            x, y = (int(v) for v in rng.integers(0, size // 2, 2))
            y = y // 2 + half * size // 2
            w, h = (int(v) for v in rng.integers(size // 6, size // 3, 2))
            draw.ellipse((x, y, x + w, y + h), fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return image


def softened(image: Image.Image) -> bytes:
    """Return an image as PNG, slightly blurred."""
    return encode(image.resize((40, 40)).resize(image.size))


def lower_half() -> bytes:
    """Return a region as PNG: white in the lower half."""
    region = Image.new("L", (8, 8), "black")
    region.paste("white", (0, 4, 8, 8))
    return encode(region)


def image_id(key: str) -> str:
    """Return the image_id of a key."""
    return hashlib.sha256(f"images.tar\0{key}".encode()).hexdigest()[:32]


class Builder:
    """Collects the rows of every table."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.tables: dict[str, list[dict[str, Any]]] = {}

    def add(self, table: str, **row: Any) -> None:
        self.tables.setdefault(table, []).append(row)

    def generation(
        self,
        ident: str,
        purpose: str,
        seed: int,
        image: bytes,
        key: str,
        whole: float,
        region: float,
        shared: bytes | None = None,
        attention: list[float] | None = None,
    ) -> None:
        run = {"caption_id": ident, "purpose": purpose, "seed": seed}
        scores = {"entropy_single_step": 1.0, "token_attention": attention}
        self.add("generations", **run, prompt_tokens=8, image=image, status="ok", **scores)
        for embedder, lower in (("sscd", 0.0), ("clip", 0.03)):
            match = {"embedder": embedder, "rank": 0, "image_id": image_id(key), "similarity": whole - lower}
            regions = (
                {"region_similarity": region, "region_agreement": 1.0, "region": shared} if embedder == "sscd" else {}
            )
            self.add("matches", **run, **match, **regions)

    def caption(self, caption: str, score: float, selected_by: str | None, copies: int) -> str:
        ident = caption_id(caption)
        self.add("captions", caption_id=ident, caption=caption, row_count=copies)
        self.add("caption_groups", caption_id=ident, caption_group=ident)
        unseen = float(np.exp(-score))
        chance = 0.1
        self.add(
            "scores",
            caption_id=ident,
            score=score,
            selected_by=selected_by,
            p_unseen=unseen,
            inclusion_probability=chance,
        )
        for _ in range(copies):
            row = len(self.tables.get("rows", ()))
            self.add("rows", caption_id=ident, file="captions.parquet", row=row, image_id=image_id(caption))
        if selected_by:
            self.add("perturbations", caption_id=ident, perturbation_margin=score / 2)
        self.add("screen", caption_id=ident, seed=0, prompt_tokens=8, entropy_single_step=score, status="ok")
        return ident

    def evidence(self, key: str, image: Image.Image) -> None:
        data = encode(image)
        sha256 = hashlib.sha256(data).hexdigest()
        place = {"image_id": image_id(key), "file": "images.tar", "row": 0, "key": key, "sha256": sha256}
        self.add("evidence", **place, image=data)
        for embedder in ("sscd", "clip"):
            self.add(f"embeddings_{embedder}", **place, vector=np.zeros(4, np.float16))
        self.add("image_clusters", image_id=image_id(key), cluster=image_id(key), cluster_size=1)


def build(root: Path) -> None:
    """Write the run into a folder."""
    builder = Builder()
    rng = builder.rng
    for n, caption in enumerate(SINGLE):
        ident = builder.caption(caption, rng.uniform(4, 8), "budget", 1 if n == 2 else 60)
        original = picture(n, 480 if n == 3 else 64)
        builder.evidence(caption, original)
        builder.generation(ident, "discover", 1, softened(original), caption, rng.uniform(0.85, 0.97), 0.9)
        for seed in SEEDS["fresh"]:
            builder.generation(ident, "fresh", seed, softened(original), caption, rng.uniform(0.6, 0.9), 0.8)
    builder.evidence("hand", picture(50))
    for caption in SHARED:
        ident = builder.caption(caption, rng.uniform(3, 7), "budget", 20)
        builder.generation(ident, "discover", 1, softened(picture(50)), "hand", rng.uniform(0.8, 0.9), 0.9)
        for seed in SEEDS["fresh"]:
            builder.generation(ident, "fresh", seed, softened(picture(50)), "hand", 0.85, 0.9)
    builder.evidence("case", picture(70, part=7))
    for n, caption in enumerate(TEMPLATES):
        ident = builder.caption(caption, rng.uniform(2, 6), "budget", 4)
        builder.generation(
            ident,
            "discover",
            1,
            softened(picture(80 + n, part=7)),
            "case",
            0.45,
            rng.uniform(0.85, 0.95),
            lower_half(),
            [0.9, 0.06, 0.04],
        )
        for seed in SEEDS["fresh"]:
            builder.generation(
                ident, "fresh", seed, softened(picture(80 + n, part=7)), "case", 0.4, 0.6 + 0.1 * (seed % 4)
            )
    for caption in (FAILED, UNKNOWN):
        builder.caption(caption, 5.0, "budget", 2)
    builder.add(
        "generations", caption_id=caption_id(FAILED), purpose="discover", seed=1, status="error", error="out of memory"
    )
    builder.generation(caption_id(UNKNOWN), "discover", 1, encode(picture(9)), "hand", 0.3, 0.2)
    for n, caption in enumerate(CALM):
        selected = "budget" if n < 20 else "sample" if n < 60 else None
        ident = builder.caption(caption, rng.exponential(0.8) + (1.5 if n < 20 else 0), selected, 1 + n % 3)
        if selected:
            builder.generation(ident, "discover", 1, encode(picture(200 + n)), "case", rng.normal(0.35, 0.08), 0.4)
    for text in CONTROL_CAPTIONS:
        known = {"caption_id": caption_id(text), "caption": text, "caption_group": caption_id(text)}
        builder.add("control_screen", **known, seed=0, prompt_tokens=8, entropy_single_step=1.0, status="ok")
    for n, text in enumerate(GENERATED_CONTROLS):
        ident = caption_id(text)
        builder.generation(
            ident, "control", 1, encode(picture(900 + n)), "case", rng.normal(0.35, 0.08), rng.normal(0.5, 0.05)
        )
    builder.add(
        "errors", stage="ingest", file="captions.parquet", row=17, rows=1, kind="missing_caption", message="no caption"
    )
    builder.add("errors", stage="ingest", file="torn.parquet", kind="unreadable", message="the file is truncated")
    broken = {
        "file": "images.tar",
        "row": 5,
        "rows": 1,
        "kind": "corrupt_image",
        "message": "cannot identify image file",
    }
    builder.add("errors", stage="embed", **broken)
    builder.add("errors", stage="generate", caption_id=caption_id(FAILED), kind="not_finite", message="out of memory")
    write(root, builder.tables)


def write(root: Path, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Judge the rows, and write all tables and the manifest."""
    arrow = {name: pa.Table.from_pylist(rows, SCHEMAS[name]) for name, rows in tables.items()}
    thresholds = {
        kind: choose_threshold(kind, control_maxima(arrow["matches"], "sscd", kind)["similarity"].to_numpy(), 0.01)
        for kind in ("verbatim", "region")
    }
    arrow["copied_images"] = copied_images(arrow["matches"], "sscd", thresholds)
    arrow["verdicts"] = judged(arrow, thresholds)
    parts = {name: write_parts(root / name, table) for name, table in arrow.items()}
    budget = set(arrow["scores"].filter(pc.field("selected_by") == "budget")["caption_id"].to_pylist())
    rest = Counter(row["row_count"] for row in tables["captions"] if row["caption_id"] not in budget)
    manifest = manifest_of(
        **READ,
        inputs=[INPUT | {"rows": arrow["rows"].num_rows + 1}],
        calibration=CALIBRATION,
        thresholds={"sscd": {kind: asdict(threshold) for kind, threshold in thresholds.items()}},
        claims=claims(arrow["verdicts"], arrow["scores"], len(CAPTIONS), rest, (100, 1), len(SEEDS["fresh"])),
        stages=stages({name: table.num_rows for name, table in arrow.items()}),
        accounting={"input_rows": arrow["rows"].num_rows + 1, "sampled_out": 0},
        parts=parts,
    )
    (root / "manifest.json").write_text(json.dumps(manifest))


def judged(arrow: dict[str, pa.Table], thresholds: dict[str, Threshold]) -> pa.Table:
    """Return the verdicts of all captions."""
    return judge(
        captions=arrow["captions"],
        scores=arrow["scores"],
        perturbations=arrow["perturbations"],
        rows=arrow["rows"],
        generations=arrow["generations"],
        matches=arrow["matches"],
        copied=arrow["copied_images"],
        links=LINKS.empty_table(),
        failures=pa.table({"caption_id": pa.array([], pa.string()), "error": pa.array([], pa.string())}),
        embedder="sscd",
        thresholds=thresholds,
        images=ImageCounts(400, 1, pa.array([image_id(UNKNOWN)])),
    )


def write_parts(folder: Path, table: pa.Table) -> dict[str, int]:
    """Write a table in two parts, and return the rows of each file. An empty part has no file."""
    folder.mkdir(parents=True)
    middle = table.num_rows // 2
    parts = {}
    for number, part in enumerate((table[:middle], table[middle:])):
        if part.num_rows:
            pq.write_table(part, folder / f"{number:05d}.parquet", compression="zstd")
            parts[f"{number:05d}.parquet"] = part.num_rows
    return parts
