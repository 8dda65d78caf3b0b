"""Draw the curves of PlantedBench as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt  # noqa: E402

SIZE = (5.2, 3.4)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "crossaudit",  # the same figures give the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


def dose_response(results: dict[str, Any], path: Path) -> None:
    """Draw the share of captions that reproduce in at least one of eight seeds, by dose, for each model."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=SIZE)
        for name, found in results.items():
            rows = [row for row in found["dose_response"] if row["kind"] == "dose"]
            share = [row["reproduced"] / row["captions"] for row in rows]
            error = [
                [s - row["low"] for s, row in zip(share, rows, strict=True)],
                [row["high"] - s for s, row in zip(share, rows, strict=True)],
            ]
            axes.errorbar([row["dose"] for row in rows], share, error, marker="o", markersize=3, capsize=2, label=name)
        axes.set(xscale="log", xlabel="dose (draws relative to an ordinary image)", ylabel="reproduced in 1 of 8 seeds")
        axes.set_xticks([row["dose"] for row in rows], [str(row["dose"]) for row in rows])
        axes.minorticks_off()
        _save(figure, axes, path)


def roc(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Draw true against false positives, with a logarithmic axis of false positives."""
    _curves(curves, path, "false-positive rate, never trained", "true-positive rate")


def budget(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Draw the share of memorized pictures found by the number of captions generated."""
    _curves(curves, path, "captions generated", "memorized pictures found")


def _curves(curves: dict[str, list[tuple[float, float]]], path: Path, across: str, up: str) -> None:
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=SIZE)
        for name, curve in curves.items():
            axes.plot(*zip(*curve, strict=True), marker=".", label=name)
        axes.set(xscale="log", ylim=(0, 1.02), xlabel=across, ylabel=up)
        _save(figure, axes, path)


def _save(figure: Any, axes: Any, path: Path) -> None:
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
