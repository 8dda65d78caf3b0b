"""Compute the tables of PlantedBench: what each dose reproduces, and how well each detector tells it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import audit
from audit.defaults import DEFAULT_DETECTOR
from audit.detectors import COMBINED, RUN, SCORES, measured_by
from audit.statistics.detection_rates import auroc, detection_rates, tpr_at
from audit.statistics.intervals import clopper_pearson
from benchmarks.planted.bench import screens, text_only
from benchmarks.planted.bench.data import DOSES
from benchmarks.planted.bench.labels import ANY, BY_SSCD, HALF_MEMORIZED, Labels
from benchmarks.planted.bench.train import ONE_PER_ENCODER
from benchmarks.planted.bench.truth import PLANTED

TEXT_ONLY, SHARPNESS = "text only", "sharpness (Jeon et al.)"
HALF_SIZE = f"{DEFAULT_DETECTOR}, 32 px"
Scores = dict[str, float]
Texts = tuple[list[dict[str, Any]], npt.NDArray[np.float64]]  # rows of captions.parquet, and their embeddings [N, E]


def dose_response(labels: Labels) -> list[dict[str, Any]]:
    """Return for each dose, and each other kind of caption, how many reproduce in at least one and in most seeds."""
    groups: dict[tuple[str, int], list[str]] = {}
    for row in labels.captions:
        if row["caption"] in labels.pixels:
            groups.setdefault((row["kind"], row["dose"] if row["kind"] == "dose" else -1), []).append(row["caption"])
    order = [("dose", dose) for dose in DOSES] + [(k, -1) for k in (*PLANTED[1:], "near", "ordinary", "never", "odd")]
    rows = []
    for kind, dose in (each for each in order if each in groups):
        captions = groups[kind, dose]
        once = sum(labels.pixels[caption] > 0 for caption in captions)
        often = sum(map(labels.in_most_seeds, captions))
        low, high = clopper_pearson(once, len(captions))
        rows.append(
            {"kind": kind, "dose": dose if dose >= 0 else None, "captions": len(captions)}
            | {"reproduced": once, "low": low, "high": high, "in_most_seeds": often}
            | {"by_sscd": sum(labels.sscd[caption] > 0 for caption in captions)}
            | {"seeds": max(labels.seeds[caption] for caption in captions)}
        )
    return rows


def all_scores(folder: Path, texts: Texts) -> dict[str, Scores]:
    """Return every detector's score of each caption, and the text-only guess.

    Args:
        folder: The folder of a measured model.
        texts: What `embedded_texts` returned for it.
    """
    found = {name: screens.scores(folder, name) for name in SCORES if name != "seed_agreement"}
    if folder.name in ONE_PER_ENCODER:
        found[HALF_SIZE] = screens.scored(folder, pq.read_table(folder / "half.parquet"), DEFAULT_DETECTOR)
        baseline = pq.read_table(folder / "sharpness.parquet")
        found[SHARPNESS] = dict(zip(baseline["caption"].to_pylist(), baseline["sharpness"].to_pylist(), strict=True))
    return found | {TEXT_ONLY: text_only_scores(texts)}


def screen_scores(folder: Path, texts: Texts) -> dict[str, Scores]:
    """Return the score of each caption by every detector that screens from one seed, and the text-only guess.

    Args:
        folder: The folder of a measured model.
        texts: What `embedded_texts` returned for it.
    """
    table = pq.read_table(folder / "screen.parquet")
    found = {name: screens.scored(folder, table, name) for name in (*COMBINED, *screens.ONE_SEED)}
    return found | {TEXT_ONLY: text_only_scores(texts)}


def embedded_texts(folder: Path) -> Texts:
    """Return the planted captions of a model and those never trained on, with their text embeddings.

    Args:
        folder: The folder of a model.
    """
    table = pq.read_table(folder / "captions.parquet")
    rows = table.filter(pc.is_in(table["kind"], pa.array([*PLANTED, "never"]))).to_pylist()
    return rows, text_only.embeddings(audit.load_model(folder / "model"), [row["caption"] for row in rows])


def without_embeddings(texts: Texts) -> Texts:
    """Return the captions without their embeddings: a guess sees case, lengths and words alone."""
    rows, embedding_NE = texts
    return rows, embedding_NE[:, :0]


def text_only_scores(texts: Texts) -> Scores:
    """Return the text-only guess for planted captions and those never trained on."""
    rows, embedding_NE = texts
    captions, planted_N = [row["caption"] for row in rows], np.array([row["kind"] != "never" for row in rows])
    features_NF = text_only.features(captions, embedding_NE)
    score_N = text_only.guess(features_NF, planted_N, [row["cluster"] for row in rows])
    return dict(zip(captions, score_N.tolist(), strict=True))


def text_only_by_dose(texts: Texts) -> dict[int, float]:
    """Return the AUROC with which the captions of each dose can be told from never-trained ones by text alone."""
    rows, embedding_NE = texts
    of = [i for i, row in enumerate(rows) if row["kind"] in ("dose", "never")]
    chosen = [rows[i] for i in of]
    features_NF = text_only.features([row["caption"] for row in chosen], embedding_NE[of])
    dose_N = np.array([row["dose"] for row in chosen])
    found = {}
    for dose in DOSES:
        at = np.flatnonzero((dose_N == dose) | (dose_N == 0))
        planted_M = dose_N[at] == dose
        score_M = text_only.guess(features_NF[at], planted_M, [chosen[i]["cluster"] for i in at])
        found[dose] = auroc(score_M[planted_M], score_M[~planted_M])
    return found


def detector_rates(labels: Labels, scores: dict[str, Scores]) -> list[dict[str, Any]]:
    """Return how well each detector tells captions that reproduce from each kind of captions that do not.

    Intervals come from a bootstrap over concepts and families.

    Args:
        labels: The labels of a model.
        scores: What `all_scores` returned.
    """
    number = {name: i for i, name in enumerate(sorted(set(labels.cluster.values())))}
    pairs = [(ANY, kind) for kind in ("never", "ordinary", "near", "odd")]
    pairs += [(HALF_MEMORIZED, "never"), (BY_SSCD, "never")]
    groups = {(which, against): (labels.positives(which), labels.negatives(against)) for which, against in pairs}
    rows = []
    for detector, score in scores.items():
        for (which, against), sides in groups.items():
            own, other = ([caption for caption in side if caption in score] for side in sides)
            if not own or not other:
                continue
            found = detection_rates(
                [score[c] for c in own],
                [score[c] for c in other],
                [number[labels.cluster[c]] for c in own],
                [number[labels.cluster[c]] for c in other],
            )
            rows.append({"detector": detector, "which": which, "against": against} | asdict(found))
    return rows


def by_dose(labels: Labels, scores: dict[str, Scores]) -> list[dict[str, Any]]:
    """Return each detector's AUROC for all captions of a dose, reproduced or not, against never-trained ones."""
    table = labels.captions
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


def seeds(folder: Path, labels: Labels) -> list[dict[str, Any]]:
    """Return what each detector tells from one seed and from four, on the same captions.

    Args:
        folder: The folder of a measured model.
        labels: Its labels.
    """
    positives, negatives = labels.positives(), labels.negatives("never")
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
            positive, negative = ([score[c] for c in group if c in score] for group in (positives, negatives))
            row[name] = {"auroc": auroc(positive, negative), "tpr_at_1_percent": tpr_at(0.01, positive, negative)}
        rows.append(row)
    return rows
