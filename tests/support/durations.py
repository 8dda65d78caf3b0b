"""Run the slow test files first or not at all, and print how long each file took: a plugin of pytest.

`make test` writes the durations of all files to build/durations.csv. Whoever makes tests slower or faster on purpose
copies it to tests/durations.csv, so that the growth of the suite is seen in reviews and in the log of CI. `make check`
leaves out the files that are known to take long, so that the inner loop stays short while the suite grows.
"""

from __future__ import annotations

import csv
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

from tests.support.paths import ROOT

KNOWN, MEASURED = ROOT / "tests/durations.csv", ROOT / "build/durations.csv"
SHOWN = 25


@cache
def _known() -> dict[str, float]:
    with KNOWN.open(newline="") as file:
        return {row["file"]: float(row["seconds"]) for row in csv.DictReader(file)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for `make test` and `make check`."""
    parser.addoption("--file-durations", action="store_true", help="print and write the seconds of each test file")
    parser.addoption("--at-most", type=float, metavar="SECONDS", help="leave out test files known to take longer")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out a file that is known to take longer than `--at-most`."""
    most = config.option.at_most
    if most is None or not collection_path.is_relative_to(ROOT):
        return None
    return True if _known().get(collection_path.relative_to(ROOT).as_posix(), 0.0) > most else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files, unknown and slow ones first, so that the processes of xdist end at about the same time."""
    known = _known()
    items.sort(key=lambda item: -known.get(item.nodeid.partition("::")[0], float("inf")))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the slowest files beside their known seconds, and write all of them."""
    if not terminalreporter.config.option.file_durations:
        return
    spent: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                spent[report.nodeid.partition("::")[0]] += report.duration  # type: ignore[assignment]
    known, slowest = _known(), spent.most_common()
    MEASURED.parent.mkdir(exist_ok=True)
    with MEASURED.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "seconds"), *((name, f"{seconds:.1f}") for name, seconds in slowest)])
    terminalreporter.section("slowest files: seconds, and those of tests/durations.csv")
    for name, seconds in [*slowest[:SHOWN], (f"all {len(slowest)} files", spent.total())]:
        before = known.get(name) if name in spent else sum(known.values())
        terminalreporter.line(f"{seconds:8.1f} {'new' if before is None else f'{before:.1f}':>8}  {name}")
