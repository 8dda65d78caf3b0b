"""Whether a single file predicts noise or velocity: said, marked or measured."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import audit
from audit.errors import AuditError
from audit.models.prediction_type import decide, noise_cosine, published_size
from pipelines.demo.demo import bundle

BASE = {"num_train_timesteps": 1000, "prediction_type": "epsilon"}


class Mixture(nn.Module):
    """A UNet whose output is so much noise and so much of something else."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def forward(self, latents_1CHW: Tensor, timestep: int, encoder_hidden_states: Tensor) -> Any:
        other_1CHW = torch.randn(latents_1CHW.shape, generator=torch.Generator().manual_seed(7))
        return SimpleNamespace(sample=self.noise * latents_1CHW + (1 - self.noise) * other_1CHW)


def mixing(sd1: audit.Model, noise: float) -> audit.Model:
    return replace(sd1, unet=Mixture(noise), scheduler_config=BASE)


@pytest.mark.parametrize(("noise", "found"), [(0.95, "epsilon"), (0.02, "v_prediction")])
def test_it_is_measured_where_nothing_says_it(sd1: audit.Model, noise: float, found: str) -> None:
    config, how = decide(mixing(sd1, noise), {}, False, None, "here")
    assert config["prediction_type"] == found
    assert how.startswith("measured: cosine of output and noise")


def test_what_cannot_be_told_is_refused_with_the_key_that_says_it(sd1: audit.Model) -> None:
    with pytest.raises(AuditError, match="cannot tell whether.*(?s:.)*model.prediction_type"):
        decide(mixing(sd1, 0.4), {}, False, None, "here")
    assert decide(mixing(sd1, 0.4), {}, False, "epsilon", "here")[1] == "as given"


def test_markers_of_fine_tunes_say_velocity_and_zero_terminal_snr(sd1: audit.Model) -> None:
    config, how = decide(mixing(sd1, 0.95), {"v_pred": True, "ztsnr": True}, False, None, "here")
    assert config["prediction_type"] == "v_prediction"
    assert config["rescale_betas_zero_snr"] is True
    assert config["timestep_spacing"] == "trailing"
    assert how == "the file's tensor v_pred"


def test_a_configuration_that_contradicts_a_marker_is_refused(sd1: audit.Model) -> None:
    with pytest.raises(AuditError, match="marked as trained with zero terminal SNR.*(?s:.)*rescale_betas_zero_snr"):
        decide(mixing(sd1, 0.95), {"ztsnr": True}, True, None, "here")


def test_a_trained_model_of_velocity_is_measured_as_one() -> None:
    model = audit.load_model(bundle() / "model")
    assert model.scheduler_config["prediction_type"] == "v_prediction"
    assert abs(noise_cosine(model)) < 0.3


def test_the_published_sizes_are_768_pixels_for_velocity_of_sd2_and_their_own_for_all_others() -> None:
    one, two = ({"cross_attention_dim": width, "sample_size": 64} for width in (768, 1024))
    assert [published_size(one, each) for each in ("epsilon", "v_prediction", None)] == [64, 64, 64]
    assert [published_size(two, each) for each in ("epsilon", "v_prediction", None)] == [64, 96, 96]
