"""Find which training images each caption copied, whole or in part, and group captions that copied the same image."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from audit.duplicates.components import components
from audit.schema import COPIED_IMAGES
from audit.verdicts.control_captions import plain
from audit.verdicts.regions import LEAST, SIDE, WHOLE, Pixels, region_of, showing, tile_means
from audit.verdicts.thresholds import COLUMNS, Threshold

VERBATIM, PARTIAL = "verbatim", "partial"
LINKS = pa.schema([("image_id", pa.string()), ("other_id", pa.string())])
Flags = npt.NDArray[np.bool_]


def copies(matches: pa.Table, thresholds: Mapping[str, Threshold]) -> tuple[Flags, Flags]:
    """Tell which matches of the deciding embedder copy a whole image, and which copy a region.

    A match beyond the `verbatim` threshold copies the whole image, unless the two pictures agree only in a region
    (`pixel_agreement` from LEAST to WHOLE). Agreement below LEAST says nothing, because a copy may be shifted. A match
    copies a region if the two agree only there, or if `region_copies` says so.

    Returns:
        (whole, region), each [R] bool for R matches. No match is in both.
    """
    like = beyond(matches, "verbatim", thresholds["verbatim"])
    inside = region_copies(matches, thresholds["region"])
    shared = matches["pixel_agreement"].to_numpy()
    in_part = (shared >= LEAST) & (shared < WHOLE)
    whole = like & ~in_part
    return whole, (like | inside) & ~whole


def copied_images(matches: pa.Table, embedder: str, thresholds: Mapping[str, Threshold]) -> pa.Table:
    """List the images that the `discover` generations of each caption copied: one row per caption and image.

    If several generations copied the same image, a copy of the whole image takes precedence, then the most similar one.

    Args:
        matches: Rows of `schema.MATCHES`.
        embedder: The embedder that decides.
        thresholds: Its thresholds, by kind (verbatim | region).

    Returns:
        A table with schema COPIED_IMAGES, sorted by caption.
    """
    mine = matches.filter((pc.field("embedder") == embedder) & (pc.field("purpose") == "discover"))
    whole, part = copies(mine, thresholds)
    how = pa.array(np.where(whole, VERBATIM, PARTIAL), pa.string())
    found = mine.append_column("copy_type", how).filter(pa.array(whole | part))
    order = [("caption_id", "ascending"), ("image_id", "ascending"), ("copy_type", "descending")]
    found = found.sort_by([*order, ("similarity", "descending"), ("seed", "ascending")])
    keys = ["caption_id", "image_id"]
    others = [name for name in COPIED_IMAGES.names if name not in keys]
    best = found.group_by(keys, use_threads=False).aggregate([(name, "first") for name in others])
    best = best.rename_columns([name.removesuffix("_first") for name in best.column_names])
    return best.select(COPIED_IMAGES.names).cast(COPIED_IMAGES)


def links(copied: pa.Table, pixels_of: Mapping[str, Pixels]) -> pa.Table:
    """Find, for each copied region, the other copied images that show the same content there (schema LINKS).

    Args:
        copied: Rows of COPIED_IMAGES.
        pixels_of: `thumbnail` of every image in `copied`, by image_id.
    """
    ids = sorted(set(copied["image_id"].to_pylist()))
    pixels_NPP3 = np.stack([pixels_of[id_] for id_ in ids]) if ids else np.empty((0, SIDE, SIDE, 3), np.float32)
    means_NTT3 = tile_means(pixels_NPP3)
    parts = copied.filter(pc.equal(copied["copy_type"], PARTIAL)).group_by(["image_id", "region"]).aggregate([])
    found: set[tuple[str, str]] = set()
    for id_, region in zip(*(parts[name].to_pylist() for name in ("image_id", "region")), strict=True):
        others = np.flatnonzero(showing(pixels_NPP3, means_NTT3, pixels_of[id_], region_of(region)))
        found |= {(id_, ids[n]) for n in others if ids[n] != id_}
    rows = [dict(zip(LINKS.names, link, strict=True)) for link in sorted(found)]
    return pa.Table.from_pylist(rows, schema=LINKS)


def families(copied: pa.Table, links: pa.Table) -> pa.Table:
    """Group captions that copied the same images, directly or through a chain of images.

    Args:
        copied: Rows of COPIED_IMAGES.
        links: (image_id, other_id), images that show the same content where one of them was copied.

    Returns:
        (caption_id, family). The family is the smallest caption_id in the group.
    """
    caption, image = (copied[name].combine_chunks().dictionary_encode() for name in ("caption_id", "image_id"))
    n = len(caption.dictionary)
    copied_P2 = np.stack([caption.indices.to_numpy(), n + image.indices.to_numpy()], axis=1)
    one, other = (n + pc.index_in(links[name], value_set=image.dictionary).to_numpy() for name in links.column_names)
    # Captions are numbered before images and are sorted, so the smallest number in a component is its smallest caption.
    _, root = components(np.concatenate([copied_P2, np.stack([one, other], axis=1)]).astype(np.int64))
    return pa.table({"caption_id": caption.dictionary, "family": caption.dictionary.take(pa.array(root[:n]))})


def best_copies(copied: pa.Table) -> pa.Table:
    """Return the best copy of each caption (schema COPIED_IMAGES); copies of whole images come first."""
    order = [("copy_type", "descending"), ("similarity", "descending"), ("image_id", "ascending")]
    ranked = copied.sort_by(order).append_column("rank", pa.array(range(len(copied)), pa.int64()))
    first = ranked.group_by("caption_id", use_threads=False).aggregate([("rank", "min")])
    return ranked.take(first["rank_min"]).drop_columns("rank")


def region_copies(matches: pa.Table, threshold: Threshold) -> Flags:
    """Tell which matches copy the region that the generations of the caption have in common.

    The region similarity must be beyond the threshold, and the two pictures must agree pixel by pixel in the fraction
    WHOLE of the region, as two pictures of which all is a copy do. The descriptor alone mistakes blobs of similar
    colours for copies once the rest of the picture is blanked.

    Args:
        matches: Rows of `schema.MATCHES`.
        threshold: The threshold of regions.

    Returns:
        One flag per match: [R] bool.
    """
    agreed = pc.fill_null(pc.greater_equal(matches["region_agreement"], WHOLE), False)
    return beyond(matches, "region", threshold) & np.asarray(agreed).astype(bool)


def beyond(matches: pa.Table, kind: str, threshold: Threshold) -> Flags:
    """Tell which matches reach a threshold and, with the background added back, its floor.

    Args:
        matches: Rows of `schema.MATCHES`.
        kind: "verbatim" or "region".
        threshold: The threshold of that kind.

    Returns:
        One flag per match: [R] bool.
    """
    if threshold.value is None:
        return np.zeros(len(matches), bool)
    column = COLUMNS[kind]
    found_R = np.asarray(pc.fill_null(pc.greater_equal(matches[column], threshold.value), False)).astype(bool)
    return found_R & above_floor(matches, kind, threshold) if threshold.floor is not None else found_R


def above_floor(matches: pa.Table, kind: str, threshold: Threshold) -> Flags:
    """Tell which matches look like copies to the embedder: their plain similarity is at least the floor.

    Args:
        matches: Rows of `schema.MATCHES`.
        kind: "verbatim" or "region".
        threshold: The threshold of that kind.

    Returns:
        One flag per match: [R] bool.
    """
    if threshold.value is None or threshold.floor is None:
        return beyond(matches, kind, threshold)
    return np.nan_to_num(plain(matches, COLUMNS[kind]), nan=-np.inf) >= threshold.floor


def copying_captions(matches: pa.Table, purpose: str, embedder: str, thresholds: Mapping[str, Threshold]) -> set[str]:
    """Find the caption_ids of a purpose (discover | control | fresh) that the thresholds would confirm.

    Args:
        matches: Rows of `schema.MATCHES`.
        purpose: The purpose of the generations to consider.
        embedder: The embedder that decides.
        thresholds: Its thresholds, by kind (verbatim | region).

    Returns:
        The caption_ids.
    """
    mine = matches.filter((pc.field("embedder") == embedder) & (pc.field("purpose") == purpose))
    whole, part = copies(mine, thresholds)
    return set(mine.filter(pa.array(whole | part))["caption_id"].to_pylist())
