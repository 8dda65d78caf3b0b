"""Write the tables of PlantedBench into a Markdown page, between markers that name them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.planted.bench.labels import ANY, BY_SSCD, HALF_MEMORIZED
from benchmarks.planted.bench.masks import MASKS
from benchmarks.planted.bench.tables import TEXT_ONLY
from benchmarks.planted.bench.train import DEVELOPMENT, ONE_PER_ENCODER, OTHER_FAMILIES, SEALED

Results = dict[str, dict[str, Any]]
KINDS = {
    "many_captions": "one image, 8 captions",
    "many_images": "one caption, 4 images",
    "template": "template families",
    "edited": "8 edited copies",
    "near": "variations of planted captions",
    "ordinary": "ordinary",
    "never": "never trained",
    "odd": "odd",
}
FIGURES = {"auroc": "AUROC", "tpr_at_1_percent": "TPR at 1 % FPR", "tpr_at_01_percent": "TPR at 0.1 % FPR"}


PLOTTED = "dev-2"
NOT_YET = "*The sealed models have not been opened yet.*"
SERVED = ("ordinary", "verbatim")


def shown(results: Results) -> list[str]:
    """Return the detectors to plot: the five with the highest AUROC on the plotted model, and the text alone."""
    rows = [r for r in results[PLOTTED]["detectors"] if (r["which"], r["against"]) == (ANY, "never")]
    curves = results[PLOTTED]["budget"]
    ranked = sorted(rows, key=lambda row: -(row["auroc"]["value"] or 0))
    return [row["detector"] for row in ranked if row["detector"] in curves and row["detector"] != TEXT_ONLY][:6]


def read_mitigation(folder: Path) -> Results:
    """Read the results of mitigation of all models."""
    paths = sorted(folder.glob("mitigation-*.json"))
    return {path.stem.removeprefix("mitigation-"): json.loads(path.read_text()) for path in paths}


def read(folder: Path) -> Results:
    """Read the results of all models, in the order of their names, the sealed ones last."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("[!m]*-[0-9].json"))}


def read_families(folder: Path) -> Results:
    """Read the results of the models of other families that are measured."""
    paths = {name: folder / f"{name}.json" for name in OTHER_FAMILIES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def all_tables(folder: Path) -> dict[str, str]:
    """Render all tables of the page from a folder of results, by the name of their marker."""
    mitigated = read_mitigation(folder)
    return tables(read(folder), mitigated) | family_tables(read_families(folder), mitigated)


def tables(results: Results, mitigated: Results) -> dict[str, str]:
    """Render all tables by the name of their marker: most as `NAME-dev` and `NAME-sealed`, some per mitigated model.

    Args:
        results: The results of each model.
        mitigated: Those of mitigation.
    """
    render: dict[str, Callable[[Results], str]] = {
        "dose-response": dose_response,
        "text-only": text_only,
        "half": lambda part: detectors(part, "tpr_at_1_percent", HALF_MEMORIZED, "never"),
        "by-sscd": lambda part: detectors(part, "tpr_at_1_percent", BY_SSCD, "never"),
        "timesteps": timesteps,
        "masks": masks,
        "by-dose": by_dose,
    }
    for figure in FIGURES:
        render[figure.replace("_", "-")] = partial(detectors, figure=figure, positives=ANY, negatives="never")
    for kind in ("ordinary", "near", "odd"):
        render[f"against-{kind}"] = partial(detectors, figure="auroc", positives=ANY, negatives=kind)
    found: dict[str, str] = {}
    for group in ("dev", "sealed"):
        part = {name: result for name, result in results.items() if name.startswith(group)}
        found |= {f"{name}-{group}": make(part) if part else NOT_YET for name, make in render.items()}
    answered = {name: result for name, result in results.items() if name in ONE_PER_ENCODER}
    found["seeds"] = seeds(answered) if answered else NOT_YET
    for model in DEVELOPMENT | SEALED:
        rows = mitigated[model]["settings"] if model in mitigated else []
        found[f"copies-left-{model}"] = copies_left(rows) if rows else NOT_YET
        found[f"quality-{model}"] = quality(rows) if rows else NOT_YET
    found["carriers"] = carriers(mitigated)
    return found


def family_tables(results: Results, mitigated: Results) -> dict[str, str]:
    """Render the tables of models of other families by the name of their marker: `NAME-families`, `copies-left-MODEL`.

    Args:
        results: The results of each model.
        mitigated: Those of mitigation.
    """
    made = {"dose-response": dose_response(results), "text-only": text_only(results)}
    for figure in ("auroc", "tpr_at_1_percent"):
        made[figure.replace("_", "-")] = detectors(results, figure, ANY, "never")
    left = {f"copies-left-{model}": copies_left(mitigated[model]["settings"]) for model in results}
    return {f"{name}-families": table for name, table in made.items()} | left


def dose_response(results: Results) -> str:
    """Render how many captions of each dose and kind reproduce."""
    first = next(iter(results.values()))["dose_response"]
    rows = []
    for i, row in enumerate(first):
        name = f"dose {row['dose']}" if row["dose"] else KINDS[row["kind"]]
        cells = [found["dose_response"][i] for found in results.values()]
        rows.append(
            [name, *(f"{c['reproduced']} of {c['captions']} ({c['in_most_seeds']}; {c['by_sscd']})" for c in cells)]
        )
    return _table(["captions", *results], rows)


def text_only(results: Results) -> str:
    """Render the AUROC of the text-only guess by dose; in parentheses without embeddings, where that is measured."""

    def cell(found: dict[str, Any], dose: str) -> str:
        words = f" ({found['words_only'][dose]:.2f})" if "words_only" in found else ""
        return f"{found['text_only'][dose]:.2f}{words}"

    doses = list(next(iter(results.values()))["text_only"])
    return _table(["dose", *results], [[dose, *(cell(found, dose) for found in results.values())] for dose in doses])


def detectors(results: Results, figure: str, positives: str, negatives: str) -> str:
    """Render one figure of every detector with its interval, best first by the mean over the models.

    Args:
        results: The results of each model.
        figure: A key of FIGURES.
        positives: "any" or "half".
        negatives: The kind of captions that are not memorized.
    """

    def of(found: dict[str, Any], detector: str) -> dict[str, Any] | None:
        rows = (
            r
            for r in found["detectors"]
            if (r["detector"], r["which"], r["against"]) == (detector, positives, negatives)
        )
        return next((row[figure] for row in rows if row[figure]["value"] is not None), None)

    names = list(dict.fromkeys(row["detector"] for found in results.values() for row in found["detectors"]))
    cells = {name: [of(found, name) for found in results.values()] for name in names}
    cells = {name: row for name, row in cells.items() if any(row)}
    ranked = sorted(
        cells, key=lambda name: (name == TEXT_ONLY, -_mean([cell["value"] for cell in cells[name] if cell]))
    )
    code: Callable[[str], str] = lambda name: name if name == TEXT_ONLY else f"`{name}`"  # noqa: E731
    return _table(["detector", *results], [[code(name), *map(_cell, cells[name])] for name in ranked])


def seeds(results: Results) -> str:
    """Render the TPR at 1 % FPR of each detector from one seed and from four."""
    rows = []
    for i, first in enumerate(next(iter(results.values()))["seeds"]):
        cells = []
        for found in results.values():
            row = found["seeds"][i]
            cells.append(" → ".join(f"{row[n]['tpr_at_1_percent']:.2f}" if n in row else "-" for n in ("one", "four")))
        rows.append([f"`{first['detector']}`", *cells])
    return _table(["detector", *results], rows)


def timesteps(results: Results) -> str:
    """Render what the mean z-score of some timesteps tells, and what it costs."""
    rows = []
    for i, first in enumerate(next(iter(results.values()))["timesteps"]):
        found = [result["timesteps"][i] for result in results.values()]
        cells = [f"{row['auroc']:.3f}, {row['tpr_at_1_percent']:.2f}, {row['found']:.2f}" for row in found]
        rows.append([first["choice"], f"{first['forwards']:.2f}", *cells])
    return _table(["timesteps", "forwards", *results], rows)


def masks(results: Results) -> str:
    """Render how well two maps find the region of a template, for the models that reproduce one."""
    found = {name: result["masks"] for name, result in results.items() if result["masks"]["generations"]}
    rows = [["generations", *(str(masks["generations"]) for masks in found.values())]]
    for mask in MASKS:
        rows.append(
            [f"`{mask}`", *(f"{masks[mask]['auroc']:.2f}, {masks[mask]['iou']:.2f}" for masks in found.values())]
        )
    return _table(["map", *found], rows)


def by_dose(results: Results) -> str:
    """Render the AUROC of every screening detector by dose, averaged over the models."""
    found: dict[tuple[str, int], list[float]] = {}
    for result in results.values():
        for row in result["by_dose"]:
            found.setdefault((row["detector"], row["dose"]), []).append(row["auroc"])
    doses = sorted({dose for _, dose in found})
    names = sorted({name for name, _ in found}, key=lambda name: -_mean([_mean(found[name, dose]) for dose in doses]))
    return _table(
        ["detector", *(f"dose {d}" for d in doses)],
        [[f"`{n}`", *(f"{_mean(found[n, d]):.2f}" for d in doses)] for n in names],
    )


def copies_left(rows: Sequence[dict[str, Any]]) -> str:
    """Render how many memorized captions each mitigation setting leaves on one model, and what CLIP says."""
    kinds = [kind for kind in ("verbatim", "template") if kind in rows[0]]
    lines = []
    for row in rows:
        changes = [100 * (row[f"clip_{kind}"] / rows[0][f"clip_{kind}"] - 1) for kind in SERVED]
        left = [_left(row[kind]) for kind in kinds]
        lines.append([_method(row), _prompts(row), *left, *(f"{change:+.1f}" for change in changes)])
    return _table(["method", "prompts", *kinds, "CLIP, ordinary, %", "memorized, %"], lines)


def quality(rows: Sequence[dict[str, Any]]) -> str:
    """Render diversity of each mitigation setting on one model, and time where it was measured."""
    lines = []
    header = ["method", "prompts", "diversity, ordinary", "memorized"]
    timed = any("time" in row for row in rows)
    for row in rows:
        line = [_method(row), _prompts(row), *(f"{row[f'diversity_{kind}']:.2f}" for kind in SERVED)]
        lines.append([*line, _ratio(row["time"]) if "time" in row else "-"] if timed else line)
    return _table([*header, "time"] if timed else header, lines)


def carriers(mitigated: Results) -> str:
    """Render how many verbatim captions reproduce when a part of the prompt is that of the empty prompt."""
    found = {name: result["carriers"] for name, result in mitigated.items() if "carriers" in result}
    if not found:
        return NOT_YET
    parts = next(iter(found.values()))
    return _table(["replaced", *found], [[part, *(str(counts[part]) for counts in found.values())] for part in parts])


def _method(row: dict[str, Any]) -> str:
    """Return a method and its settings, short enough for a table."""
    shorter = row["method"].replace("token=none,zero_eos=false,", "").replace("bos_scale", "BOS")
    name, _, settings = shorter.partition(":")
    pooled = ", empty pooled" if row.get("empty_pooled") else ""
    return f"`{name}` {settings.replace(',', ', ').replace('=', ' ')}".strip() + pooled


def _prompts(row: dict[str, Any]) -> str:
    return f"{row['only']}, {row['max_p']}" if "max_p" in row else str(row["only"])


def _ratio(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def _left(found: dict[str, Any]) -> str:
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{found['left']} of {found['of']} ({low:.0f} to {high:.0f} %; {found['by_sscd']})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _cell(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    interval = "" if estimate["low"] is None else f" [{estimate['low']:.2f}, {estimate['high']:.2f}]"
    return f"{estimate['value']:.3f}{interval}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
