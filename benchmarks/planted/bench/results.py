"""Collect everything that is measured on a model in one JSON file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.planted.bench import curves, masks, tables, timesteps
from benchmarks.planted.bench.labels import Labels
from benchmarks.planted.bench.train import MODELS, ONE_PER_ENCODER


def collect(folder: Path) -> dict[str, Any]:
    """Compute all tables and curves of a measured model.

    Args:
        folder: The folder of the model, with `truth.parquet`, `runs.parquet` and `screen.parquet`.
    """
    texts, labels = tables.embedded_texts(folder), Labels.read(folder)
    scores, words = tables.all_scores(folder, texts), tables.without_embeddings(texts)
    seeds = {"seeds": tables.seeds(folder, labels)} if folder.name in ONE_PER_ENCODER else {}
    return seeds | {
        "model": folder.name,
        "frozen": MODELS[folder.name].frozen,
        "dose_response": tables.dose_response(labels),
        "text_only": tables.text_only_by_dose(texts),
        "words_only": tables.text_only_by_dose(words),
        "detectors": tables.detector_rates(labels, scores),
        "timesteps": timesteps.compare(folder, labels),
        "masks": masks.compare(folder),
        "by_dose": tables.by_dose(labels, scores),
        "roc": curves.roc(labels, scores),
        "budget": curves.found_by_budget(labels, scores),
    }


def collect_some(folder: Path) -> dict[str, Any]:
    """Compute the tables of a measured model of another family.

    Args:
        folder: The folder of the model, with `truth.parquet` and `screen.parquet`.
    """
    texts, labels = tables.embedded_texts(folder), Labels.read(folder)
    scores = tables.screen_scores(folder, texts)
    return {
        "model": folder.name,
        "dose_response": tables.dose_response(labels),
        "text_only": tables.text_only_by_dose(texts),
        "detectors": tables.detector_rates(labels, scores),
        "by_dose": tables.by_dose(labels, scores),
    }


def write(found: dict[str, Any], path: Path) -> None:
    """Write results with the digits that mean something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(found), indent=1) + "\n")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {str(key): _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
