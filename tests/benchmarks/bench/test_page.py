"""The evidence page has the tables of the recorded results."""

from __future__ import annotations

from benchmarks.markers import insert
from benchmarks.planted.bench import page
from tests.support.paths import ROOT


def test_detectors_are_ranked_and_the_text_stands_last() -> None:
    estimate = {"low": None, "high": None, "reason": ""}
    rows = [
        {"detector": name, "which": "any", "against": "never", "auroc": {"value": value, **estimate}}
        for name, value in ((page.TEXT_ONLY, 0.9), ("weak", 0.5), ("strong", 0.8))
    ]
    lines = page.detectors({"dev-1": {"detectors": rows}}, "auroc", "any", "never").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["`strong`", "`weak`", page.TEXT_ONLY]


def test_the_evidence_page_has_the_tables_of_the_recorded_results() -> None:
    recorded = ROOT / "benchmarks/planted/bench/results"
    text = (ROOT / "docs/evidence.md").read_text("utf-8")
    assert insert(text, page.all_tables(recorded)) == text
