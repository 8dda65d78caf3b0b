"""Which training images a caption copied, whole or in a region, and the families of captions that copied the same."""

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
    """Of each match of the embedder that decides, whether it is a copy of the whole image, and whether of a region.

    Beyond the threshold of `verbatim` it is one of the whole image, unless the two show the same in a region alone
    (`shared` from LEAST to WHOLE; below LEAST a copy may be shifted, which says nothing). A copy of a region is such a
    one, or one beyond the threshold of `region` within the region.
    """
    like = beyond(matches, "verbatim", thresholds["verbatim"])
    inside = beyond(matches, "region", thresholds["region"])
    shared = matches["pixel_agreement"].to_numpy()
    in_part = (shared >= LEAST) & (shared < WHOLE)
    whole = like & ~in_part
    return whole, (like | inside) & ~whole


def copied_images(matches: pa.Table, embedder: str, thresholds: Mapping[str, Threshold]) -> pa.Table:
    """What the `discover` generations of each caption copied (schema COPIED_IMAGES): one row a caption and image.

    Of several generations of an image, a copy of the whole comes first, then the most similar. Sorted by caption.
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
    """Which copied images show the same as another where a region of that one was copied (schema LINKS).

    `pixels_of`: `thumbnail` of every image of `copied`.
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
    """(caption_id, family): the smallest caption_id that each is connected with, through images that both copied.

    `links`: (image_id, other_id), images that show the same where one of them was copied.
    """
    caption, image = (copied[name].combine_chunks().dictionary_encode() for name in ("caption_id", "image_id"))
    n = len(caption.dictionary)
    copied_P2 = np.stack([caption.indices.to_numpy(), n + image.indices.to_numpy()], axis=1)
    one, other = (n + pc.index_in(links[name], value_set=image.dictionary).to_numpy() for name in links.column_names)
    # Captions come before images, and are sorted: the smallest number of a component is its smallest caption.
    _, root = components(np.concatenate([copied_P2, np.stack([one, other], axis=1)]).astype(np.int64))
    return pa.table({"caption_id": caption.dictionary, "family": caption.dictionary.take(pa.array(root[:n]))})


def beyond(matches: pa.Table, kind: str, threshold: Threshold) -> Flags:
    """Tell which matches are at or beyond a threshold, and with their background at or beyond its floor: [R]."""
    if threshold.value is None:
        return np.zeros(len(matches), bool)
    column = COLUMNS[kind]
    found_R = np.asarray(pc.fill_null(pc.greater_equal(matches[column], threshold.value), False)).astype(bool)
    return found_R & near(matches, kind, threshold) if threshold.floor is not None else found_R


def near(matches: pa.Table, kind: str, threshold: Threshold) -> Flags:
    """Tell which matches look like copies to the embedder: a plain similarity at or beyond the floor, [R]."""
    if threshold.value is None or threshold.floor is None:
        return beyond(matches, kind, threshold)
    return np.nan_to_num(plain(matches, COLUMNS[kind]), nan=-np.inf) >= threshold.floor


def copying_captions(matches: pa.Table, purpose: str, embedder: str, thresholds: Mapping[str, Threshold]) -> set[str]:
    """Find the captions of a purpose (discover | null | fresh) that the thresholds would confirm, by caption_id."""
    mine = matches.filter((pc.field("embedder") == embedder) & (pc.field("purpose") == purpose))
    whole, part = copies(mine, thresholds)
    return set(mine.filter(pa.array(whole | part))["caption_id"].to_pylist())
