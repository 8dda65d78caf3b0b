"""Compute the tables of PlantedBench: what each dose reproduces, and how well each detector tells it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import audit
from audit.detectors import COMBINED, RUN, SCORES, measured_by
from audit.statistics.detection_rates import auroc, detection_rates, tpr_at
from audit.statistics.intervals import clopper_pearson
from benchmarks.planted.bench import screens, text_only
from benchmarks.planted.bench.data import DOSES
from benchmarks.planted.bench.truth import PLANTED, SEEDS

TEXT_ONLY, SHARPNESS = "text only", "sharpness (Jeon et al.)"
HALF = len(SEEDS) // 2  # a caption that reproduces in 1 to 4 of 8 seeds is half-memorized
Scores = dict[str, float]


def reproduced(truth: pa.Table) -> dict[str, int]:
    """Count for each caption the seeds in which it reproduces its image, or its family's region, by pixels."""
    hit = pc.or_(truth["pixels_whole"], pc.fill_null(truth["pixels_region"], False))
    counts = truth.select(["caption"]).append_column("hit", pc.cast(hit, pa.int64())).group_by("caption")
    found = counts.aggregate([("hit", "sum")])
    return dict(zip(found["caption"].to_pylist(), found["hit_sum"].to_pylist(), strict=True))


def dose_response(folder: Path) -> list[dict[str, Any]]:
    """Return for each dose, and each other kind of caption, how many reproduce in at least one and in most seeds.

    Args:
        folder: The folder of a measured model.
    """
    captions = {row["caption"]: row for row in pq.read_table(folder / "captions.parquet").to_pylist()}
    truth = pq.read_table(folder / "truth.parquet")
    verdicts: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for caption, group in _by_caption(truth).items():
        row = captions[caption]
        verdicts.setdefault((row["kind"], row["dose"] if row["kind"] == "dose" else -1), []).append(group)
    order = [("dose", dose) for dose in DOSES] + [(k, -1) for k in (*PLANTED[1:], "near", "ordinary", "never", "odd")]
    rows = []
    for kind, dose in order:
        groups = verdicts[kind, dose]
        once, often = (sum(group["pixels"] > least for group in groups) for least in (0, HALF))
        low, high = clopper_pearson(once, len(groups))
        rows.append(
            {"kind": kind, "dose": dose if dose >= 0 else None, "captions": len(groups)}
            | {"reproduced": once, "low": low, "high": high, "in_most_seeds": often}
            | {"by_sscd": sum(group["sscd"] > 0 for group in groups)}
            | {"seeds": max(group["seeds"] for group in groups)}
        )
    return rows


def _by_caption(truth: pa.Table) -> dict[str, dict[str, int]]:
    """Count the generations of each caption, and those that reproduce by pixels and by SSCD."""
    found: dict[str, dict[str, int]] = {}
    for row in truth.to_pylist():
        counts = found.setdefault(row["caption"], {"pixels": 0, "sscd": 0, "seeds": 0})
        counts["pixels"] += bool(row["pixels_whole"] or row["pixels_region"])
        counts["sscd"] += bool(row["sscd_whole"] or row["sscd_region"])
        counts["seeds"] += 1
    return found


def all_scores(folder: Path) -> dict[str, Scores]:
    """Return every detector's score of each caption, and the text-only guess."""
    found = {name: screens.scores(folder, name) for name in SCORES if name != "seed_agreement"}
    baseline = pq.read_table(folder / "sharpness.parquet")
    found[SHARPNESS] = dict(zip(baseline["caption"].to_pylist(), baseline["sharpness"].to_pylist(), strict=True))
    captions = pq.read_table(folder / "captions.parquet")
    chosen = captions.filter(pc.is_in(captions["kind"], pa.array([*PLANTED, "never"]))).to_pylist()
    planted_N = np.array([row["kind"] != "never" for row in chosen])
    features_NF = text_only.features(audit.load_model(folder / "model"), [row["caption"] for row in chosen])
    score_N = text_only.guess(features_NF, planted_N, [row["cluster"] for row in chosen])
    found[TEXT_ONLY] = dict(zip([row["caption"] for row in chosen], score_N.tolist(), strict=True))
    return found


def text_only_by_dose(folder: Path) -> dict[int, float]:
    """Return the AUROC with which the captions of each dose can be told from never-trained ones by text alone.

    Args:
        folder: The folder of a model.
    """
    table = pq.read_table(folder / "captions.parquet")
    chosen = table.filter(pc.is_in(table["kind"], pa.array(["dose", "never"]))).to_pylist()
    features_NF = text_only.features(audit.load_model(folder / "model"), [row["caption"] for row in chosen])
    dose_N = np.array([row["dose"] for row in chosen])
    found = {}
    for dose in DOSES:
        at = np.flatnonzero((dose_N == dose) | (dose_N == 0))
        planted_M = dose_N[at] == dose
        score_M = text_only.guess(features_NF[at], planted_M, [chosen[i]["cluster"] for i in at])
        found[dose] = auroc(score_M[planted_M], score_M[~planted_M])
    return found


def detector_rates(folder: Path, scores: dict[str, Scores]) -> list[dict[str, Any]]:
    """Return how well each detector tells captions that reproduce from each kind of captions that do not.

    Positives are planted captions that reproduce in at least one seed (`any`), or in one to four of eight (`half`).
    Intervals come from a bootstrap over concepts and families.

    Args:
        folder: The folder of a measured model.
        scores: What `all_scores` returned.
    """
    table = pq.read_table(folder / "captions.parquet").to_pylist()
    cluster = {row["caption"]: row["cluster"] for row in table}
    number = {name: i for i, name in enumerate(sorted(set(cluster.values())))}
    hits = reproduced(pq.read_table(folder / "truth.parquet"))
    of_kind: dict[str, list[str]] = {}
    for row in table:
        of_kind.setdefault(row["kind"], []).append(row["caption"])
    planted = [caption for kind in PLANTED for caption in of_kind[kind]]
    positives = {
        "any": [caption for caption in planted if hits[caption] > 0],
        "half": [caption for caption in planted if 0 < hits[caption] <= HALF],
    }
    negatives = {
        kind: [c for c in of_kind[kind] if hits.get(c, 0) == 0] for kind in ("never", "ordinary", "near", "odd")
    }
    rows = []
    for detector, score in scores.items():
        pairs = [(p, n) for p in positives for n in negatives if p == "any" or n == "never"]
        for p, n in pairs:
            own, other = ([c for c in group if c in score] for group in (positives[p], negatives[n]))
            if not own or not other:
                continue
            found = detection_rates(
                [score[c] for c in own],
                [score[c] for c in other],
                [number[cluster[c]] for c in own],
                [number[cluster[c]] for c in other],
            )
            rows.append({"detector": detector, "which": p, "against": n} | asdict(found))
    return rows


def by_dose(folder: Path, scores: dict[str, Scores]) -> list[dict[str, Any]]:
    """Return each detector's AUROC for all captions of a dose, reproduced or not, against never-trained ones."""
    table = pq.read_table(folder / "captions.parquet").to_pylist()
    never = [row["caption"] for row in table if row["kind"] == "never"]
    rows = []
    for detector, score in scores.items():
        if detector in (*RUN, TEXT_ONLY, SHARPNESS):
            continue
        negative = [score[c] for c in never if c in score]
        for dose in DOSES:
            own = [row["caption"] for row in table if row["kind"] == "dose" and row["dose"] == dose]
            rows.append({"detector": detector, "dose": dose, "auroc": auroc([score[c] for c in own], negative)})
    return rows


def seeds(folder: Path) -> list[dict[str, Any]]:
    """Return what each detector tells from one seed and from four, on the same captions.

    Args:
        folder: The folder of a measured model.
    """
    kind = {row["caption"]: row["kind"] for row in pq.read_table(folder / "captions.parquet").to_pylist()}
    hits = reproduced(pq.read_table(folder / "truth.parquet"))
    four = pq.read_table(folder / "seeds.parquet")
    one = four.filter(pc.field("seed") == screens.SEED)
    rows = []
    for detector in SCORES:
        parts = COMBINED.get(detector, (detector,))
        if not set(map(measured_by, parts)) <= set(screens.FOUR_SEEDS):
            continue
        row: dict[str, Any] = {"detector": detector}
        for name, table in (("one", one), ("four", four)):
            if detector == "seed_agreement" and table is one:
                continue
            score = screens.scored(folder, table, detector)
            positive = [s for c, s in score.items() if kind[c] in PLANTED and hits[c] > 0]
            negative = [s for c, s in score.items() if kind[c] == "never" and hits.get(c, 0) == 0]
            row[name] = {"auroc": auroc(positive, negative), "tpr_at_1_percent": tpr_at(0.01, positive, negative)}
        rows.append(row)
    return rows
