"""Run the slow test files first, and print how long each file took: a plugin of pytest.

`make test` writes the durations of all files to build/durations.csv. Whoever makes tests slower or faster on purpose
copies it to tests/durations.csv, so that the growth of the suite is seen in reviews and in the log of CI.
"""

from __future__ import annotations

import csv
from collections import Counter

import pytest
from _pytest.terminal import TerminalReporter

from tests.support.paths import ROOT

KNOWN, MEASURED = ROOT / "tests/durations.csv", ROOT / "build/durations.csv"
SHOWN = 25


def _known() -> dict[str, float]:
    with KNOWN.open(newline="") as file:
        return {row["file"]: float(row["seconds"]) for row in csv.DictReader(file)}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option for `make test`."""
    parser.addoption("--file-durations", action="store_true", help="print and write the seconds of each test file")


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
