from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import audit
from audit import schema
from audit.calibration.calibration import in_fitting_half
from audit.duplicates.captions import caption_groups, caption_id
from audit.errors import AuditError

LAYERS = 4
CONTEXT = {
    "weights": {"unet": "aa", "text_encoder": "bb", "tokenizer": "cc"},
    "dtype": "float32",
    "seeds": [0, 1],
    "scheduler": {"beta_end": 0.012, "prediction_type": "epsilon"},
    "latent_shape": [4, 16, 16],
    "detectors": {"attention_profile": 1, "noise_profile": 1, "noise_magnitude": 1},
}
COLUMNS = ["layer_entropy", "layer_bos", "noise_response", "noise_magnitude"]


def table(captions: list[str], *, shift: float = 0.0, seed: int = 0, context: dict[str, Any] = CONTEXT) -> pa.Table:
    """A screen of two seeds with random features; `shift` moves the noise response of all captions."""
    rng = np.random.default_rng(seed)
    rows = 2 * len(captions)
    bos_RL = rng.uniform(0.2, 0.6, size=(rows, LAYERS))
    style_R1 = rng.normal(size=(rows, 1))
    data = {
        "caption": np.repeat(captions, 2).tolist(),
        "seed": [0, 1] * len(captions),
        "prompt_tokens": [5] * rows,
        "layer_entropy": (2 + (1 - bos_RL) * rng.normal(2, 0.1, size=(rows, LAYERS))).tolist(),
        "layer_bos": bos_RL.tolist(),
        "noise_response": (style_R1 + rng.normal(size=(rows, 8)) + shift * np.array([1, -1] * 4)).tolist(),
        "noise_magnitude": rng.exponential(size=rows) + shift,
        "status": ["ok"] * rows,
        "error": [None] * rows,
    }
    metadata = {b"crossaudit": json.dumps(context).encode()}
    return pa.table(data, schema=schema.scored(COLUMNS).with_metadata(metadata))


CONTROL = [f"control caption {number}" for number in range(400)]
FRESH = [f"fresh caption {number}" for number in range(400)]


@pytest.fixture(scope="module")
def calibration() -> audit.Calibration:
    return audit.calibrate(table(CONTROL), "profile")


def test_withheld_p_values_are_null_and_scores_stay(calibration: audit.Calibration, tmp_path: Path) -> None:
    replace(calibration, withheld="unlike").save(tmp_path / "calibration.json")
    loaded = audit.load_calibration(tmp_path / "calibration.json")
    assert loaded.withheld == "unlike"
    scores, plain = (each.score(table(FRESH, seed=1)) for each in (loaded, calibration))
    assert scores["score"].equals(plain["score"])
    assert scores.schema == plain.schema
    assert scores["p_unseen"].null_count == len(scores)


def test_one_row_per_caption_with_seeds_averaged_first(calibration: audit.Calibration) -> None:
    scores = calibration.score(table(FRESH, seed=1))
    assert scores.column_names == ["caption", "score", "p_unseen"]
    assert scores["caption"].to_pylist() == FRESH
    averaged = table(FRESH, seed=1)
    for name in COLUMNS:
        values = np.array(averaged[name].to_pylist()).reshape(len(FRESH), 2, -1).mean(1)
        values = np.repeat(values, 2, axis=0)
        at = averaged.column_names.index(name)
        column = pa.array(values.tolist() if name != "noise_magnitude" else values[:, 0])
        averaged = averaged.set_column(at, name, column)
    np.testing.assert_allclose(calibration.score(averaged)["score"], scores["score"], rtol=1e-9)


@pytest.fixture(scope="module")
def trials() -> list[tuple[pa.Table, pa.Table]]:
    """Screens of control captions, and of as unremarkable new ones."""
    groups = pa.array(np.repeat(caption_groups(CONTROL[:140]), 2))
    controls = [table(CONTROL[:140], seed=2 * trial).append_column("caption_group", groups) for trial in range(12)]
    return [(control, table(FRESH[:200], seed=2 * trial + 1)) for trial, control in enumerate(controls)]


@pytest.mark.parametrize("detector", ["profile", "attention_profile", "noise_profile", "noise_magnitude"])
def test_p_values_of_fresh_control_captions_are_valid(detector: str, trials: list[tuple[pa.Table, pa.Table]]) -> None:
    """With as few as 140 control captions, no more than 5 % of new captions get a p-value below 0.05, up to chance.

    The p-values would not be valid if the same half of the control captions gave both the distance and the p-values.
    """
    p = []
    for control, fresh in trials:
        p.append(audit.calibrate(control, detector).score(fresh)["p_unseen"].to_numpy())
    assert np.mean(np.array(p) <= 0.05) < 0.065
    assert np.mean(np.array(p) <= 0.5) < 0.55
    assert np.min(p) > 0
    assert np.max(p) <= 1


@pytest.mark.parametrize("detector", ["profile", "noise_profile", "noise_magnitude"])
def test_captions_unlike_the_null_score_higher(detector: str) -> None:
    calibrated = audit.calibrate(table(CONTROL), detector)
    control, odd = calibrated.score(table(FRESH, seed=1)), calibrated.score(table(FRESH, seed=1, shift=5))
    assert np.min(odd["score"]) > np.quantile(control["score"], 0.9)
    assert np.mean(odd["p_unseen"]) < 0.02


def test_nothing_ties_beyond_the_null(calibration: audit.Calibration) -> None:
    scores = calibration.score(table(FRESH, seed=1, shift=50))
    assert len(set(scores["score"].to_pylist())) == len(FRESH)
    assert len(set(scores["p_unseen"].to_pylist())) == 1


def test_the_profile_is_the_larger_of_its_parts_and_twice_the_smaller_p(calibration: audit.Calibration) -> None:
    new = table(FRESH, seed=1)
    attention, noise = (
        audit.calibrate(table(CONTROL), detector).score(new) for detector in ("attention_profile", "noise_profile")
    )
    both = calibration.score(new)
    np.testing.assert_array_equal(both["score"], np.maximum(attention["score"], noise["score"]))
    np.testing.assert_array_equal(
        both["p_unseen"], np.minimum(1, 2 * np.minimum(attention["p_unseen"], noise["p_unseen"]))
    )


@pytest.mark.parametrize(
    ("detector", "column"), [("profile", "noise_response"), ("noise_magnitude", "noise_magnitude")]
)
def test_multiplying_a_feature_by_100_does_not_change_a_score(detector: str, column: str) -> None:
    def scaled(given: pa.Table) -> pa.Table:
        values = np.array(given[column].to_pylist()).reshape(given.num_rows, -1)
        values[:, -1] *= 100
        values = values if values.shape[1] > 1 else values[:, 0]
        at = given.column_names.index(column)
        return given.set_column(at, given.schema.field(at), pa.array(values.tolist()))

    plain = audit.calibrate(table(CONTROL), detector).score(table(FRESH, seed=1))
    other = audit.calibrate(scaled(table(CONTROL)), detector).score(scaled(table(FRESH, seed=1)))
    np.testing.assert_allclose(other["score"], plain["score"], rtol=1e-6)


def test_save_and_load_give_the_same_bits(calibration: audit.Calibration, tmp_path: Path) -> None:
    calibration.save(tmp_path / "calibration.json")
    loaded = audit.load_calibration(tmp_path / "calibration.json")
    new = table(FRESH, seed=1, shift=1)
    assert loaded.score(new).equals(calibration.score(new))
    assert (loaded.detector, loaded.context) == (calibration.detector, calibration.context)
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text() == (tmp_path / "calibration.json").read_text()


@pytest.mark.parametrize("content", ["", "{}", '{"format": 99}', "[]"])
def test_a_file_that_is_no_calibration_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(AuditError, match="not a calibration"):
        audit.load_calibration(tmp_path / "c.json")


def test_a_table_of_ids_is_scored_by_id(calibration: audit.Calibration) -> None:
    new = table(FRESH, seed=1)
    ids = [caption_id(caption) for caption in new["caption"].to_pylist()]
    by_id = calibration.score(new.set_column(0, "caption_id", pa.array(ids)))
    assert by_id.column_names == ["caption_id", "score", "p_unseen"]
    assert by_id["caption_id"].to_pylist() == [caption_id(caption) for caption in FRESH]
    assert by_id["score"] == calibration.score(new)["score"]


def test_rows_that_failed_are_left_out(calibration: audit.Calibration) -> None:
    new = table(FRESH, seed=1)
    status = ["error", "error", "error", *["ok"] * (new.num_rows - 3)]  # both rows of one caption, one of the next
    failed = new.set_column(new.column_names.index("status"), "status", pa.array(status))
    for name in schema.features_of(new.schema):
        values = [None if word == "error" else value for word, value in zip(status, new[name].to_pylist(), strict=True)]
        column = pa.array(values, new.schema.field(name).type)
        failed = failed.set_column(new.column_names.index(name), name, column)
    scores = calibration.score(failed)
    assert scores["caption"].to_pylist() == FRESH[1:]
    good_row_twice = new.take([3, 3])  # what is left of the second caption is averaged over the seeds that are left
    assert scores["score"][0].as_py() == pytest.approx(calibration.score(good_row_twice)["score"][0].as_py())
    assert calibration.score(new.slice(0, 0)).num_rows == 0


def test_a_row_whose_other_detector_failed_still_counts(calibration: audit.Calibration) -> None:
    new = table(FRESH, seed=1)
    status = new.set_column(new.column_names.index("status"), "status", pa.array(["error"] * new.num_rows))
    assert calibration.score(status).equals(calibration.score(new))


@pytest.mark.parametrize(
    ("change", "item"),
    [
        ({"dtype": "float16"}, "dtype is 'float16' in the table, 'float32'"),
        ({"seeds": [0]}, r"seeds is \[0\]"),
        ({"weights": CONTEXT["weights"] | {"unet": "zz"}}, "weights of unet is 'zz'"),  # type: ignore[operator]
        ({"weights": CONTEXT["weights"] | {"tokenizer": "zz"}}, "weights of tokenizer"),  # type: ignore[operator]
        ({"scheduler": {"beta_end": 0.02, "prediction_type": "epsilon"}}, "scheduler beta_end is 0.02"),
        ({"latent_shape": [4, 64, 64]}, "latent shape"),
        ({"tf32": True}, "TF32 is True in the table, None in the calibration"),
        ({"detectors": {"attention_profile": 2, "noise_profile": 1}}, "version of attention_profile is 2"),
    ],
)
def test_another_context_is_an_error_that_says_which_item_differs(
    calibration: audit.Calibration, change: dict[str, Any], item: str
) -> None:
    with pytest.raises(AuditError, match=item):
        calibration.score(table(FRESH, context=CONTEXT | change))


def test_what_a_detector_does_not_depend_on_may_differ(calibration: audit.Calibration) -> None:
    detectors = CONTEXT["detectors"] | {"noise_magnitude": 2}  # type: ignore[operator]
    calibration.score(table(FRESH, context=CONTEXT | {"detectors": detectors}))


def test_steps_and_guidance_matter_to_trajectory_detectors() -> None:
    def run(captions: list[str], **settings: Any) -> pa.Table:
        context = CONTEXT | {"detectors": {"entropy_trajectory": 1}, "steps": 50, "guidance_scale": 7.5} | settings
        data = {
            "caption": captions,
            "entropy_trajectory": np.random.default_rng(0).normal(size=len(captions)),
            "status": ["ok"] * len(captions),
        }
        return pa.table(data).replace_schema_metadata({b"crossaudit": json.dumps(context).encode()})

    calibrated = audit.calibrate(run(CONTROL), "entropy_trajectory")
    assert calibrated.score(run(CONTROL)).num_rows == len(CONTROL)
    with pytest.raises(AuditError, match="steps is 20 in the table, 50 in the calibration"):
        calibrated.score(run(CONTROL, steps=20))


def test_a_table_that_does_not_say_its_context_is_an_error(calibration: audit.Calibration) -> None:
    with pytest.raises(AuditError, match="does not say what it depends on"):
        calibration.score(table(FRESH).replace_schema_metadata(None))


def test_a_table_without_the_detectors_columns_is_an_error() -> None:
    with pytest.raises(AuditError, match="no column noise_response"):
        audit.calibrate(table(CONTROL).drop_columns("noise_response"), "profile")
    with pytest.raises(AuditError, match="no column noise_response"):
        audit.calibrate(table(CONTROL), "profile").score(table(FRESH).drop_columns("noise_response"))


def test_an_unknown_detector_is_an_error() -> None:
    with pytest.raises(AuditError, match="no detector 'nonsense' gives a score"):
        audit.calibrate(table(CONTROL), "nonsense")


def test_too_few_control_captions_are_an_error_that_says_how_many_are_needed() -> None:
    with pytest.raises(AuditError, match="each half needs 30.*\n.*at least 90 control captions"):
        audit.calibrate(table(CONTROL[:50]), "profile")


def test_near_identical_captions_never_fall_into_both_halves() -> None:
    """A column of groups decides; without it the texts do."""
    assert {in_fitting_half(f"group {number}") for number in range(50)} == {True, False}
    control = table(CONTROL)
    one_group = control.append_column("caption_group", pa.array(["the same"] * control.num_rows))
    with pytest.raises(AuditError, match="each half needs"):
        audit.calibrate(one_group, "profile")
    words = ["one", "caption", "of", "many", "words", "in", "many", "spellings"]
    spelled = [
        " ".join(word.upper() if number >> at & 1 else word for at, word in enumerate(words)) for number in range(128)
    ]
    with pytest.raises(AuditError, match="128 fit the distance and 0|0 fit the distance and 128"):
        audit.calibrate(table(spelled), "profile")


def test_the_order_of_the_control_captions_does_not_matter(calibration: audit.Calibration) -> None:
    control = table(CONTROL)
    shuffled = control.take(np.random.default_rng(5).permutation(control.num_rows))
    new = table(FRESH, seed=1)
    found = audit.calibrate(shuffled, "profile").score(new)
    np.testing.assert_allclose(found["score"], calibration.score(new)["score"], rtol=1e-7)


def test_a_real_screen_calibrates_and_scores(small: audit.Model) -> None:
    call: dict[str, Any] = {"detectors": ["attention_profile"], "resolution": 16}
    control = audit.screen(small, CONTROL[:120], **call, batch_size=40)
    new = audit.screen(small, FRESH[:5], **call)
    scores = audit.calibrate(control, "attention_profile").score(new)
    assert scores["caption"].to_pylist() == FRESH[:5]
    assert np.isfinite(scores["score"]).all()
    assert np.min(scores["p_unseen"]) > 0


@pytest.mark.parametrize("value", [0.0, 3.84])
def test_a_score_that_is_the_same_for_all_control_captions_is_refused_by_name(value: float) -> None:
    """As with zero terminal SNR, where the predicted noise at t = T is the input: every p-value would be 1."""
    captions = [f"caption {number} of a set" for number in range(200)]
    context = CONTEXT | {"detectors": {"noise_magnitude": 1}, "seeds": [0]}
    rounded = value * (1 + np.random.default_rng(0).uniform(-1e-8, 1e-8, len(captions)))
    control = pa.table({"caption": captions, "seed": [0] * 200, "status": ["ok"] * 200, "noise_magnitude": rounded})
    control = control.replace_schema_metadata({b"crossaudit": json.dumps(context).encode()})
    with pytest.raises(AuditError, match="noise_magnitude gives all 200 control captions the same score"):
        audit.calibrate(control, "noise_magnitude")
