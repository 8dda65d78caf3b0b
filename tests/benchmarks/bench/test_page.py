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


def test_copies_left_are_listed_by_method_pooled_vector_and_kinds_of_captions() -> None:
    left = {"left": 1, "of": 2, "low": 0.01, "high": 0.99, "by_sscd": 2}
    clip = {"clip_ordinary": 0.2, "clip_verbatim": 0.2}
    diluted = {"method": "dilute:share=0.4", "only": "screen", "max_p": 0.1, "empty_pooled": True}
    rows = [{"method": "plain", "only": "all", "verbatim": left, **clip}]
    rows += [{**diluted, "verbatim": left, **clip}]
    head, _, first, second = page.copies_left(rows).splitlines()
    assert head == "| method | prompts | verbatim | CLIP, ordinary, % | memorized, % |"
    assert first == "| `plain` | all | 1 of 2 (1 to 99 %; 2) | +0.0 | +0.0 |"
    assert "`dilute` share 0.4, empty pooled | screen, 0.1 | 1 of 2 (1 to 99 %; 2) |" in second


def test_the_evidence_page_has_the_tables_of_the_recorded_results() -> None:
    recorded = ROOT / "benchmarks/planted/bench/results"
    text = (ROOT / "docs/evidence.md").read_text("utf-8")
    assert insert(text, page.all_tables(recorded)) == text
