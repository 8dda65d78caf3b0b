from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import audit
from audit.errors import AuditError, UsageError
from audit.explaining.caption import explain
from tests.support.paths import DATA
from tests.support.tiny_mmdit import tiny_flux, tiny_sd3
from tests.support.tiny_pixart import tiny_pixart
from tests.support.tiny_sana import tiny_sana
from tests.support.tiny_xl import tiny_xl

CAPTION = "a serene beach at sunrise, 35mm"
CONTROL = [
    f"a {colour} {thing}" for colour in ("red", "blue", "old") for thing in ("cat", "house", "boat", "hill", "car")
]
MANY = [f"{a} {b}" for a in CONTROL for b in ("in oil", "at noon", "on paper", "by night", "in snow", "in 3d")]


def test_attention_and_entropy_are_those_of_the_trajectory(small: audit.Model) -> None:
    found = explain(small, CAPTION, seed=3, steps=5)
    table = audit.generate(small, [CAPTION], [3], steps=5, detectors=["entropy_trajectory", "bright_ending"])
    row = table.to_pylist()[0]
    count = row["prompt_tokens"]
    assert found.tokens[0] == "BOS"
    assert found.tokens[count - 1] == "EOS"
    assert found.tokens[count:] == ["padding"]
    np.testing.assert_allclose(found.attention_PT.sum(0), 1, atol=1e-6)
    np.testing.assert_allclose(found.entropy_T, row["entropy_steps"], atol=1e-5)
    np.testing.assert_allclose(found.attention_PT[:count, -1], row["token_attention"][:count], atol=1e-6)
    assert found.region == row["region"]
    assert found.band_T2 is None
    ours, theirs = (np.asarray(Image.open(io.BytesIO(image)), int) for image in (found.image, row["image"]))
    assert np.abs(ours - theirs).max() <= 1


def test_the_band_holds_nine_tenths_of_the_control_captions(small: audit.Model) -> None:
    found = explain(small, CAPTION, steps=2, control_captions=CONTROL[::2])
    curves = np.array(
        audit.generate(small, CONTROL[::2], steps=2, detectors=["entropy_trajectory"])["entropy_steps"].to_pylist()
    )
    assert found.band_T2 is not None
    assert found.control_captions == 8
    np.testing.assert_allclose(found.band_T2, np.quantile(curves, [0.05, 0.95], axis=0).T, atol=1e-5)


def test_tokens_are_left_out_one_at_a_time(small: audit.Model) -> None:
    found = explain(small, "a red dog", seed=1, steps=2)
    full, *rest = audit.screen(small, ["a red dog", "red dog", "a dog", "a red"], [1], ["caption_response"])[
        "caption_response"
    ].to_pylist()
    assert (found.detector, found.p_unseen) == ("caption_response", None)
    assert found.score == pytest.approx(full, abs=1e-5)
    assert dict(found.moves) == pytest.approx({1: full - rest[0], 2: full - rest[1], 3: full - rest[2]}, abs=1e-4)
    assert [fall for _, fall in found.moves] == sorted((fall for _, fall in found.moves), reverse=True)


@pytest.fixture(scope="module")
def calibration(small: audit.Model) -> audit.Calibration:
    table = audit.screen(small, MANY, [4], ["noise_magnitude"], batch_size=90, resolution=16)
    return audit.calibrate(table, "noise_magnitude")


def test_a_calibration_gives_score_and_p(small: audit.Model, calibration: audit.Calibration) -> None:
    found = explain(small, CAPTION, steps=2, calibration=calibration)
    table = audit.screen(small, [CAPTION], [4], ["noise_magnitude"], resolution=16)
    scored = calibration.score(table).to_pylist()[0]
    assert (found.score, found.p_unseen) == pytest.approx((scored["score"], scored["p_unseen"]), abs=1e-4)


def test_the_empty_caption_has_no_token_to_leave_out(small: audit.Model) -> None:
    found = explain(small, "", steps=2)
    assert found.tokens == ["BOS", "EOS", "padding"]
    assert found.moves == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (tiny_xl, ["BOS", "a", "red", "dog", "EOS"]),
        (lambda folder, _tokenizer: tiny_pixart(folder), ["EOS", "a", "red", "dog"]),
        (lambda folder, _tokenizer: tiny_sana(folder), ["BOS", "a", "red", "dog"]),
        (tiny_flux, ["EOS and image", "a", "red", "dog"]),
        (tiny_sd3, ["BOS and image", "a", "red", "dog", "a (T5)", "red (T5)", "dog (T5)", "EOS", "EOS"]),
    ],
)
def test_positions_are_named_as_the_family_lays_them_out(
    make: Callable[[Path, Path], Path], words: list[str], tmp_path: Path
) -> None:
    model = audit.load_model(make(tmp_path / "model", DATA / "tiny-sd1/tokenizer"), resolution=32)
    assert explain(model, "a red dog", steps=1).tokens == [*words, "padding"]


def test_a_calibration_of_whole_runs_or_of_another_model_is_an_error(
    small: audit.Model, sd1: audit.Model, calibration: audit.Calibration
) -> None:
    run = audit.calibrate(
        audit.generate(small.at_resolution(8), MANY, [0], 1, 1.0, ["entropy_trajectory"], output="latents"),
        "entropy_trajectory",
    )
    with pytest.raises(UsageError, match="follows whole runs"):
        explain(small, CAPTION, steps=2, calibration=run)
    with pytest.raises(AuditError, match="another context"):
        explain(sd1, CAPTION, steps=1, calibration=calibration)
