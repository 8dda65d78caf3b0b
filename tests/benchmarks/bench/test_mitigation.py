"""Settings have a meaning for the model, and flagged captions alone get the images of the method."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import audit
from audit.mitigation.inference import check_mitigation
from audit.mitigation.methods.registry import parse
from benchmarks.planted.bench.mitigation import FINALISTS, MAX_P, PLAIN, SETTINGS, Made, Setting, figures, settings_of
from benchmarks.planted.bench.train import MODELS, OTHER_FAMILIES
from tests.support.paths import DATA
from tests.support.tiny_mmdit import tiny_sd3
from tests.support.tiny_pixart import tiny_pixart
from tests.support.tiny_xl import tiny_xl

TOKENIZER = DATA / "tiny-sd1/tokenizer"
MAKE: dict[str, Callable[[Path], Path]] = {
    "sdxl": partial(tiny_xl, tokenizer=TOKENIZER),
    "pixart": tiny_pixart,
    "sd3": partial(tiny_sd3, tokenizer=TOKENIZER, t5=False),
}


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("dilute:share=0.4", Setting("dilute:share=0.4", "all", MAX_P)),
        ("padding@run", Setting("padding", "run", MAX_P)),
        ("dilute:share=0.4@run:0.2", Setting("dilute:share=0.4", "run", 0.2)),
    ],
)
def test_a_setting_names_the_method_the_prompts_and_the_level(text: str, setting: Setting) -> None:
    assert Setting.parse(text) == setting


def test_the_sealed_models_are_measured_with_settings_of_the_development_models() -> None:
    assert set(FINALISTS) <= set(SETTINGS)


@pytest.mark.parametrize("name", MODELS)
def test_the_plain_model_is_measured_first(name: str) -> None:
    assert settings_of(name)[0] == Setting(PLAIN)


@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_settings_of_a_family_have_a_meaning_for_it(name: str, tmp_path: Path) -> None:
    pipeline = audit.load_model(MAKE[name](tmp_path / "model")).pipeline()
    for setting in settings_of(name)[1:]:
        check_mitigation(pipeline, parse(setting.method), setting.empty_pooled)


def made(copied: list[list[bool]], clip: list[list[float]], angles: list[list[float]]) -> Made:
    """Return what two seeds made, with vectors of length one; SSCD finds all copies."""
    copied_SN, angle_SN = np.array(copied), np.array(angles)
    vector_SND = np.stack([np.cos(angle_SN), np.sin(angle_SN)], -1)
    return Made(copied_SN, np.ones_like(copied_SN), np.array(clip), vector_SND)


UNCHANGED = made([[True, True], [True, True]], [[0.3, 0.3], [0.3, 0.3]], [[0, 0], [0, 0]])
METHOD = made([[False, False], [True, False]], [[0.1, 0.2], [0.1, 0.2]], [[0, 0], [0, np.pi / 2]])


def test_flagged_captions_are_those_of_the_method_and_the_others_are_plain() -> None:
    both = METHOD.where(np.array([False, True]), UNCHANGED)
    assert both.copied_SN.tolist() == [[True, False], [True, False]]
    assert both.clip_SN.tolist() == [[0.3, 0.2], [0.3, 0.2]]
    np.testing.assert_array_equal(both.vector_SND[:, 0], UNCHANGED.vector_SND[:, 0])
    np.testing.assert_array_equal(both.vector_SND[:, 1], METHOD.vector_SND[:, 1])


def test_a_copy_in_one_seed_counts_and_diversity_is_between_seeds() -> None:
    row = figures({"verbatim": METHOD, "ordinary": UNCHANGED})
    assert (row["verbatim"]["left"], row["verbatim"]["of"], row["verbatim"]["by_sscd"]) == (1, 2, 2)
    assert row["clip_verbatim"] == pytest.approx(0.15)
    assert row["diversity_verbatim"] == pytest.approx(0.5)
    assert row["diversity_ordinary"] == pytest.approx(0)
    assert "ordinary" not in row
