from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

import audit
from audit.calibration.calibration import in_fitting_half
from audit.calibration.strata import control_scores, false_positives, main_script, strata_of
from audit.duplicates.captions import caption_groups, caption_id
from audit.schema import CONTROL_SCORES, METADATA_KEY, control_screen

CONTEXT = {
    "weights": {},
    "scheduler": {},
    "dtype": "float32",
    "seeds": [0],
    "latent_shape": [4, 8, 8],
    "detectors": {},
}


@pytest.fixture(scope="module")
def control_table() -> pa.Table:
    """300 control captions. Long ones have far larger values, so all of their p-values are small."""
    rng = np.random.default_rng(0)
    texts = [f"caption {n}" if n % 10 else f"a longer caption about number {n}" for n in range(300)]
    rows = [
        {
            "caption_id": caption_id(text),
            "caption": text,
            "caption_group": group,
            "seed": 0,
            "prompt_tokens": 5,
            "noise_magnitude": rng.exponential() + (50 if len(text) > 25 else 0),
            "status": "ok",
        }
        for text, group in zip(texts, caption_groups(texts), strict=True)
    ]
    layout = control_screen(["noise_magnitude"]).with_metadata({METADATA_KEY: json.dumps(CONTEXT).encode()})
    return pa.Table.from_pylist([{name: row.get(name) for name in layout.names} for row in rows], schema=layout)


def test_a_control_caption_is_compared_with_the_other_held_out_ones(control_table: pa.Table) -> None:
    scores = control_scores(audit.calibrate(control_table, "noise_magnitude"), control_table)
    rows = {row["caption_id"]: row for row in control_table.to_pylist() if not in_fitting_half(row["caption_group"])}
    assert set(scores["caption_id"].to_pylist()) == set(rows)
    for score in scores.to_pylist():
        others = [row["noise_magnitude"] for id_, row in rows.items() if id_ != score["caption_id"]]
        at_least = sum(value >= rows[score["caption_id"]]["noise_magnitude"] for value in others)
        assert score["p_unseen"] == pytest.approx((1 + at_least) / (1 + len(others)), abs=1e-12)


def test_small_p_values_are_counted_in_each_stratum(control_table: pa.Table) -> None:
    scores = control_scores(audit.calibrate(control_table, "noise_magnitude"), control_table)
    captions = pa.table({"caption": ["short", "a caption of more than fifty letters, which is a long one"]})
    captions = captions.append_column("truncated", pa.array([False, True]))
    truncated = dict.fromkeys(control_table["caption_id"].to_pylist(), False)
    found = {(each.kind, each.name): each for each in false_positives(scores, control_table, truncated, captions)}
    short, long = found["length", "0 to 25 characters"], found["length", "26 to 50 characters"]
    assert short.above[1] == 0
    assert long.above[1] > 0
    assert short.controls + long.controls == len(scores)
    assert short.share_captions == 0.5
    cut = found["truncation", "truncated"]
    assert (cut.controls, cut.share_captions, cut.low, cut.high) == (0, 0.5, (0.0, 0.0), (1.0, 1.0))
    assert found["script", "Latin"].controls == len(scores)


def test_no_control_scores_give_no_rates(control_table: pa.Table) -> None:
    captions = pa.table({"caption": ["short"], "truncated": [False]})
    assert all(
        each.controls == 0 for each in false_positives(CONTROL_SCORES.empty_table(), control_table, {}, captions)
    )


def test_a_caption_is_in_one_stratum_of_each_kind() -> None:
    assert strata_of("x" * 25, False) == [
        ("length", 0, "0 to 25 characters"),
        ("truncation", 0, "not truncated"),
        ("script", 0, "Latin"),
    ]
    assert strata_of("x" * 26, None)[0] == ("length", 1, "26 to 50 characters")
    assert strata_of("x" * 101, None)[0] == ("length", 3, "101 characters or more")
    assert [main_script(text) for text in ("кот cat дом", "猫", "12", "")] == ["Cyrillic", "Cjk", "none", "none"]
