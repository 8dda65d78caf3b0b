"""Draw the pairs that raters judge: the confirmed captions, and decoys whose truth is known."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from audit import schema
from audit.errors import AuditError
from audit.record.ledger import Ledger
from audit.record.manifest_entries import ThresholdEntry
from pipelines.tables import verdicts

PAIRS = "review_pairs"
# A third as many decoys that are copies as decoys that are not.
POSITIVE_SHARE = 3


@dataclass(frozen=True)
class LookAlike:
    """A generation of a control caption and its nearest training image."""

    caption_id: str
    seed: int
    image_id: str
    orientation: str


def cases(ledger: Ledger, most: int) -> list[dict[str, Any]]:
    """Return the pairs of up to `most` confirmed captions, those of the audit sample first, then in a random order.

    Raises:
        AuditError: No caption was confirmed.
    """
    confirmed = verdicts.confirmed(ledger, ["caption_id", "image_id", "family"]).to_pylist()
    if not confirmed:
        hint = "A review judges the captions with the verdict verbatim or partial."
        raise AuditError("no caption was confirmed, so there is nothing to review", where=ledger.uri, hint=hint)
    sampled = ledger.dataset("scores", schema.SCORES).to_table(["caption_id"], pc.field("selected_by") == "sample")
    first = set(sampled["caption_id"].to_pylist())
    confirmed.sort(key=lambda row: (row["caption_id"] not in first, shuffled("case", row["caption_id"])))
    chosen = confirmed[:most]
    copies = verdicts.copies_of(ledger, chosen)
    return [pair("case", row["image_id"], row["caption_id"], copies[row["caption_id"]]["seed"]) for row in chosen]


def look_alikes(ledger: Ledger, embedder: str, thresholds: Mapping[str, ThresholdEntry], most: int) -> list[LookAlike]:
    """Return the generations of control captions that come nearest to a threshold: what a false positive looks like.

    Control captions that really reproduce a training image (`excluded`) are left out. Each caption and each training
    image occurs once, so that raters do not see the same decoy again.
    """
    excluded = {control.caption_id for limit in thresholds.values() for control in limit.excluded}
    columns = ["caption_id", "seed", "image_id", "orientation", "similarity", "region_similarity"]
    wanted = (pc.field("purpose") == "control") & (pc.field("embedder") == embedder)
    found = ledger.dataset("matches", schema.MATCHES).to_table(columns, wanted).to_pylist()
    limits = {"similarity": thresholds.get("verbatim"), "region_similarity": thresholds.get("region")}

    def margin(row: dict[str, Any]) -> float:
        known = [(row[name], limit.value) for name, limit in limits.items() if limit is not None]
        return max((value - least for value, least in known if None not in (value, least)), default=row["similarity"])

    found.sort(key=lambda row: (-margin(row), row["caption_id"], row["seed"], row["image_id"]))
    chosen: list[LookAlike] = []
    captions, images = set(excluded), set[str]()
    for row in found:
        if row["caption_id"] not in captions and row["image_id"] not in images:
            captions.add(row["caption_id"])
            images.add(row["image_id"])
            chosen.append(LookAlike(*(row[name] for name in ("caption_id", "seed", "image_id", "orientation"))))
    return chosen[:most]


def mismatches(ledger: Ledger, cases: Iterable[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Pair generations of cases with the training image of another caption.

    The other image is not among those that the caption or its family copied, nor in a cluster with one of them.
    """
    family_of = {
        row["caption_id"]: row["family"] or row["caption_id"]
        for row in verdicts.confirmed(ledger, ["caption_id", "family"]).to_pylist()
    }
    copied = ledger.read("copied_images", columns=["caption_id", "image_id"]).to_pylist()
    evidence = sorted(ledger.read("evidence", columns=["image_id"])["image_id"].to_pylist())
    named = pa.array(sorted({*evidence, *(row["image_id"] for row in copied)}), pa.string())
    known = ledger.dataset("image_clusters", schema.IMAGE_CLUSTERS).to_table(
        ["image_id", "cluster"], pc.field("image_id").isin(named)
    )
    cluster_of = dict(zip(known["image_id"].to_pylist(), known["cluster"].to_pylist(), strict=True))
    taken: dict[str, set[str]] = defaultdict(set)
    for row in copied:
        taken[family_of.get(row["caption_id"], row["caption_id"])].add(_cluster(cluster_of, row["image_id"]))
    found = []
    for case in sorted(cases, key=lambda case: shuffled("mismatch", case["pair"])):
        right = taken[family_of[case["caption_id"]]] | {_cluster(cluster_of, case["image_id"])}
        wrong = [image_id for image_id in evidence if _cluster(cluster_of, image_id) not in right]
        if wrong:
            image_id = min(wrong, key=lambda image_id: shuffled(case["pair"], image_id))
            found.append(pair("mismatch", image_id, case["caption_id"], case["seed"]))
    return found[:most]


def altered(ledger: Ledger, most: int) -> list[dict[str, Any]]:
    """Return decoys of up to `most` training images that are shown beside an altered version of themselves."""
    images = ledger.read("evidence", columns=["image_id"])["image_id"].to_pylist()
    chosen = sorted(images, key=lambda image_id: shuffled("altered", image_id))[:most]
    return [pair("altered", image_id) for image_id in chosen]


def pair(
    kind: str, image_id: str, caption_id: str | None = None, seed: int | None = None, image: bytes | None = None
) -> dict[str, Any]:
    """Return a row of REVIEW_PAIRS.

    Args:
        kind: One of PAIR_TYPES.
        image_id: The training image.
        caption_id: The caption of the generation; None for an altered training image.
        seed: The seed of the generation.
        image: The training image, if the table `evidence` lacks it.
    """
    purpose = None if caption_id is None else "control" if kind == "control" else "discover"
    return {
        "pair": shuffled(kind, str(caption_id), str(seed), image_id)[:32],
        "pair_type": kind,
        "caption_id": caption_id,
        "purpose": purpose,
        "seed": seed,
        "image_id": image_id,
        "image": image,
    }


def shuffled(*parts: str) -> str:
    """Return a hash to sort by: an order that looks random and is the same on every machine."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _cluster(cluster_of: Mapping[str, str], image_id: str) -> str:
    return cluster_of.get(image_id, image_id)
