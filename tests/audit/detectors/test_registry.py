from __future__ import annotations

import pytest

from audit import schema
from audit.defaults import DEFAULT_DETECTOR
from audit.detectors import NAMES, RUN, SCORES, SCREEN, run_detectors, screen_detectors, uncalibrated
from audit.errors import UsageError
from audit.models.flux import Flux
from audit.models.sd import StableDiffusion
from audit.models.sdxl import StableDiffusionXL


def test_every_detector_writes_only_columns_of_the_schema() -> None:
    for detector in [*SCREEN.values(), *RUN.values()]:
        assert set(detector.columns) <= set(schema.DETECTOR_COLUMNS)


def test_a_scalar_detectors_column_has_its_name() -> None:
    for name in (
        "caption_response",
        "entropy_single_step",
        "noise_magnitude",
        "noise_alignment",
        "one_step_error",
        "step_change",
    ):
        assert SCREEN[name].columns == (name,)
    for name in ("entropy_trajectory", "entropy_trajectory_signed", "noise_magnitude_mean"):
        assert name in RUN[name].columns
        assert name in RUN[name].scores


def test_every_detector_says_where_it_comes_from_and_what_it_costs() -> None:
    for detector in [*SCREEN.values(), *RUN.values()]:
        assert detector.source
        assert detector.cost


def test_the_default_is_a_screening_detector_with_a_score_of_its_own() -> None:
    assert DEFAULT_DETECTOR in SCREEN
    assert DEFAULT_DETECTOR in SCORES


def test_all_but_masks_give_scores() -> None:
    assert set(NAMES) - set(SCORES) == {"bright_ending"}


def test_what_reads_attention_is_uncalibrated_evidence_for_families_without_planted_models() -> None:
    assert uncalibrated(NAMES, StableDiffusion) == []
    assert uncalibrated(NAMES, Flux) == [
        "profile",
        "response_and_attention",
        "attention_profile",
        "entropy_single_step",
        "attention_profile_early",
        "entropy_trajectory",
        "entropy_trajectory_signed",
        "trajectory_profile",
        "bright_ending",
    ]
    assert uncalibrated(NAMES, StableDiffusionXL) == [name for name in uncalibrated(NAMES, Flux) if name in RUN]


def test_the_profile_is_both_profiles_each_once() -> None:
    names = [detector.name for detector in screen_detectors(["noise_profile", "profile", "noise_magnitude"])]
    assert names == ["noise_profile", "attention_profile", "noise_magnitude"]


def test_two_scores_of_one_column_are_one_detector() -> None:
    names = [detector.name for detector in screen_detectors(["noise_response_mean", "response_and_attention"])]
    assert names == ["noise_profile", "attention_profile"]


def test_both_forms_of_the_trajectory_are_one_detector() -> None:
    assert len(run_detectors(["entropy_trajectory", "entropy_trajectory_signed"])) == 1


def test_the_error_for_an_unknown_detector_lists_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match="Available here: profile, response_and_attention, caption_response, attention_"
    ):
        screen_detectors(["profil"])
