"""Write the figures of `benchmarks.speed` into README and the page on performance, between markers.

python -m benchmarks.speed_page
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markers import insert
from benchmarks.speed import HALF, PLAIN, RELEASED, RESULTS, name_of

Result = dict[str, Any]
ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/explanation/performance.md")
SHOWN = (
    "sd15-cuda-bfloat16",
    "sd21-cuda-bfloat16",
    "tiny-sd1-cpu-float32",
)  # the results that the page on performance has
NOT_YET = "*Not measured yet: `make bench` does.*"
NAMES = {"tiny-sd1": "tiny SD 1", "demo": "demo's model", "sd15": "SD 1.5", "sd21": "SD 2.1"}


def read(folder: Path) -> list[Result]:
    """Read all results, in the order of their file names."""
    return [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]


def tables(results: Sequence[Result], counts: Sequence[Result]) -> dict[str, str]:
    """Render all tables by the name of their marker: `speed` for README, `counted`, and two for each result."""
    found = {f"{kind}-{name}": NOT_YET for kind in ("speed", "parts") for name in SHOWN}
    found |= {
        "speed": headline(results) if results else NOT_YET,
        "counted": counted(counts) if counts else NOT_YET,
    }
    for result in results:
        name = name_of(result)
        found[f"speed-{name}"], found[f"parts-{name}"] = tasks(result), parts(result)
    return found


def headline(results: Sequence[Result]) -> str:
    """Render what a caption costs with the default screen, beside plain diffusers and the released code."""
    lines = [
        "| per caption | computed | time | times less than plain diffusers | than the released code |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        where = f"{NAMES[result['arch']]}, {result['dtype']}, {result['machine']['name']}"
        default = [f"screen, {name}{half}" for name in result["default"] for half in ("", HALF)]
        for name in (RELEASED, f"{PLAIN}, batch 1", *default, "screen, entropy_single_step"):
            if name in result["tasks"]:
                task = result["tasks"][name]
                given = _compared(result, name, f"{PLAIN}, batch 1"), _compared(result, name, RELEASED)
                cells = f"{_flop(task['tflop'])} | {_time(_median(task))} | {' | '.join(given)}"
                lines.append(f"| {where}: {_title(name)} | {cells} |")
    return "\n".join(lines)


def counted(counts: Sequence[Result]) -> str:
    """Render the FLOPs per caption of each architecture, and how many times less they are than the released code's."""
    lines = [f"| | {' | '.join(NAMES[each['arch']] for each in counts)} |", "|---|" + "---|" * len(counts)]
    for name in (name for name in counts[0]["tflop"] if "batch" not in name):
        cells = []
        for each in counts:
            tflop = each["tflop"][name]
            times = f" ({_digits(each['tflop'][RELEASED] / tflop)} times less)" if name.startswith("screen") else ""
            cells.append(_flop(tflop) + times)
        if any(cells):
            lines.append(f"| {_title(name)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tasks(result: Result) -> str:
    """Render all screens and generations of a result: time per caption, FLOPs, speed and ratios."""
    lines = [
        _about(result),
        "",
        "| | time per caption (quartiles) | computed | TFLOP/s (of peak) | times less than plain | than released |",
        "|---|---|---|---|---|---|",
    ]
    for name, task in result["tasks"].items():
        cells = [_title(name), _spread(task), _flop(task["tflop"]), _rate(result, task)]
        cells += [_compared(result, name, base) for base in (f"{PLAIN}, batch 1", RELEASED)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parts(result: Result) -> str:
    """Render the parts of a result: time per row, FLOPs and speed."""
    lines = ["| part | time per row (quartiles) | computed | TFLOP/s (of the peak) |", "|---|---|---|---|"]
    for name, task in result["parts"].items():
        lines.append(f"| {name} | {_spread(task)} | {_flop(task['tflop'])} | {_rate(result, task)} |")
    return "\n".join(lines)


def _about(result: Result) -> str:
    machine, steps = result["machine"], result["steps"]
    text = (
        f"{NAMES[result['arch']]}, {result['dtype']}, {machine['name']}, {machine['threads']} "
        f"thread{'s' if machine['threads'] > 1 else ''}, torch {machine['torch']}; screens in batches of "
        f"{result['batch']}; {machine['clock']}, medians of {result['rounds']} rounds. Peak of a matrix product "
        f"{result['peak_tflops']:.3g} TFLOP/s, peak memory {result['peak_memory_gib']:.2g} GiB."
    )
    if any(task["scaled"] for task in result["tasks"].values()):
        text += f" Generations ran {steps} steps; their times are scaled to 50."
    return textwrap.fill(text, 120)


def _median(task: Result) -> float:
    return float(np.median(task["seconds"]))


def _spread(task: Result) -> str:
    low, middle, high = np.quantile(task["seconds"], [0.25, 0.5, 0.75])
    return f"{_time(middle)} ({_time(low)} to {_time(high)})"


def _compared(result: Result, name: str, base: str) -> str:
    """Say how many times less a task takes than another, by the median ratio of the rounds; nothing if more."""
    seconds = (result["tasks"][each]["seconds"] for each in (base, name))
    ratio = float(np.median(np.divide(*seconds)))
    return _digits(ratio) if ratio > 1 else ""


def _rate(result: Result, task: Result) -> str:
    rate = task["tflop"] / _median(task)
    return f"{rate:.3g} ({100 * rate / result['peak_tflops']:.0f} %)" if rate else ""


def _title(name: str) -> str:
    words = name.split(", ", 1)
    return (
        f"screen, `{words[1].removesuffix(HALF)}`{', half side' * words[1].endswith(HALF)}"
        if words[0] == "screen"
        else name
    )


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{_digits(seconds / scale)} {unit}"
    return f"{seconds:.1g} s"


def _flop(tflop: float) -> str:
    for unit, scale in (("TFLOP", 0.1), ("GFLOP", 1e-4)):
        if tflop >= scale:
            return f"{_digits(tflop / (1.0 if unit == 'TFLOP' else 1e-3))} {unit}"
    return f"{_digits(tflop * 1e6)} MFLOP" if tflop else ""


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    """Write the tables into the pages."""
    found = tables(read(RESULTS), read(RESULTS / "counted"))
    for page in PAGES:
        page.write_text(insert(page.read_text("utf-8"), found), "utf-8")


if __name__ == "__main__":
    main()
