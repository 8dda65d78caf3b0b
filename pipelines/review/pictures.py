"""Prepare the two pictures of each pair so that nothing but their content tells which one was generated."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageEnhance

from audit.errors import AuditError
from audit.images.decoding import decode
from audit.record.ledger import Ledger
from audit.record.manifest import RunManifest
from reports.purged import note

# Pixels of the longer side, at most. Smaller pictures are shown pixel by pixel, as PNG.
MAX_SIDE, TINY = 768, 128
JPEG = {"quality": 92, "subsampling": 0}
# An altered picture loses this share of each side, this share of its brightness, and half of its resolution.
CROPPED, DARKENED = 0.03, 0.06

# The pictures of a pair: the generation (or the altered training image), then the training image.
Pictures = tuple[bytes, bytes]


def pictures(ledger: Ledger, manifest: RunManifest, pairs: pa.Table) -> dict[str, Pictures]:
    """Return the encoded pictures of every pair.

    All are kept in memory, because one picture is read as slowly as a whole part of `generations`.

    Raises:
        AuditError: A picture is missing, for example after a purge.
    """
    training = _evidence(ledger, pairs)
    generated = _generated(ledger, pairs)
    found, missing = {}, 0
    for row in pairs.to_pylist():
        original = row["image"] or training.get(row["image_id"])
        image = generated.get((row["caption_id"], row["purpose"], row["seed"]))
        if original is None or (image is None and row["pair_type"] != "altered"):
            missing += 1
            continue
        other = decode(original)
        first = decode(image) if row["pair_type"] != "altered" else altered(other)
        found[row["pair"]] = alike(first, other)
    if missing:
        removed = note(manifest)
        what = f"the pictures of {missing:,} of {len(pairs):,} pairs are missing"
        hint = "The answers given so far still count. Audit again with another --out to judge more pairs."
        raise AuditError(f"{what}: {removed}" if removed else what, where=ledger.uri, hint=hint)
    return found


def alike(first: Image.Image, second: Image.Image) -> Pictures:
    """Encode two pictures at the same resolution and in the same format, so that sharpness betrays neither."""
    side = min(max(first.size), max(second.size), MAX_SIDE)
    one, other = (_encoded(picture, side) for picture in (first, second))
    return one, other


def altered(picture: Image.Image) -> Image.Image:
    """Return a picture that is slightly cropped, darker and softer: a copy, as a model makes them."""
    width, height = picture.size
    left, top = round(width * CROPPED), round(height * CROPPED)
    cut = picture.crop((left, top, max(width - left, left + 1), max(height - top, top + 1)))
    half = cut.resize((max(width // 2, 1), max(height // 2, 1)), Image.Resampling.LANCZOS)
    soft = half.resize((width, height), Image.Resampling.BICUBIC)
    return ImageEnhance.Brightness(soft).enhance(1 - DARKENED)


def _encoded(picture: Image.Image, side: int) -> bytes:
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    shown = picture.resize(size, Image.Resampling.LANCZOS) if size != picture.size else picture
    buffer = io.BytesIO()
    if side <= TINY:
        shown.save(buffer, "PNG")
    else:
        shown.save(buffer, "JPEG", **JPEG)
    return buffer.getvalue()


def _evidence(ledger: Ledger, pairs: pa.Table) -> dict[str, bytes]:
    wanted = pc.field("image_id").isin(pairs["image_id"].combine_chunks())
    found: dict[str, bytes] = {}
    for _, part in ledger.each("evidence", ["image_id", "image"]):
        part = part.filter(wanted & pc.field("image").is_valid())
        found |= dict(zip(part["image_id"].to_pylist(), part["image"].to_pylist(), strict=True))
    return found


def _generated(ledger: Ledger, pairs: pa.Table) -> dict[tuple[str, str, int], bytes]:
    """Map (caption_id, purpose, seed) to the generation."""
    keys = ["caption_id", "purpose", "seed"]
    wanted = {tuple(row.values()) for row in pairs.select(keys).to_pylist()}
    captions = pairs["caption_id"].drop_null().combine_chunks()
    found = {}
    for _, part in ledger.each("generations", [*keys, "image"]):
        part = part.filter(pc.field("caption_id").isin(captions) & pc.field("image").is_valid())
        for row in part.to_pylist():
            key = (row["caption_id"], row["purpose"], row["seed"])
            if key in wanted:
                found[key] = row["image"]
    return found
