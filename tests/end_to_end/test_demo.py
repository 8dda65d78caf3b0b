"""How the demo compares verdicts with the known truth."""

from __future__ import annotations

import io

import pyarrow as pa
from rich.console import Console

from pipelines.demo.demo import crosstab, summarize

LABELS = pa.table({"caption": list("abcdef"), "label": ["verbatim", "verbatim", "none", "near", "ordinary", "partial"]})
VERDICTS = pa.table(
    {
        "caption": list("fedcba"),
        "verdict": ["partial", "not_selected", "verbatim", "unconfirmed", "not_selected", "verbatim"],
    }
)


def test_every_caption_is_counted_under_its_label_and_verdict() -> None:
    counts = crosstab(VERDICTS, LABELS)
    assert counts["verbatim"] | {"verbatim": 1, "not_selected": 1} == counts["verbatim"]
    assert sum(sum(row.values()) for row in counts.values()) == 6
    assert counts["none"]["unconfirmed"] == 1


def test_the_summary_gives_each_share_apart() -> None:
    console = Console(file=io.StringIO(), width=120)
    summarize(VERDICTS, LABELS, console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "verbatim captions found verbatim:       1 of 2 (50.0 %)" in shown
    assert "partial captions found:                 1 of 1 (100.0 %)" in shown
    assert "captions never trained on but flagged:  0 of 1 (0.0 %)" in shown
    assert "1 of 1 (100.0 %) near, 0 of 1 (0.0 %) ordinary" in shown
