"""`audit.generate` and `audit.screen` against a plain loop on diffusers' own scheduler, in float64."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

import audit
from audit.errors import AuditError
from audit.models.noise import initial_latent
from audit.models.schedulers import CLASSES, resolve
from tests.support.schedulers import SD, TABLE

CAPTION, SEED, STEPS, GUIDANCE = "a dog", 3, 3, 4.0
SHAPE = (4, 8, 8)
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
# Guidance multiplies what float64 rounds; outputs pass through float32 once, when they are written.
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def small_unet(model: audit.Model, **change: Any) -> UNet2DConditionModel:
    """A UNet of one level with random weights, in float64: a forward takes milliseconds."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": SHAPE[1],
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": model.text_encoder.config.hidden_size,
    }
    return UNet2DConditionModel(**(config | change)).double().eval().requires_grad_(False)


def with_unet(model: audit.Model, unet: UNet2DConditionModel) -> audit.Model:
    return replace(model, unet=unet, latent_shape=SHAPE)


@pytest.fixture(scope="module")
def small(data: Path) -> audit.Model:
    model = audit.load_model(data / "toy-model", dtype=torch.float64)
    return with_unet(model, small_unet(model))


def their_run(model: audit.Model, intended: dict[str, Any], steps: int = STEPS) -> np.ndarray:
    """The final latents by DDIM as its paper has it: diffusers' scheduler with the intended parameters."""
    scheduler = DDIMScheduler(**intended)
    scheduler.set_timesteps(steps)
    hidden = torch.cat([model.encode([text]).tensors["encoder_hidden_states"] for text in ("", CAPTION)])
    latents = initial_latent(SEED, SHAPE).double()[None]
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            empty, own = model.unet(torch.cat([latents] * 2), timestep, encoder_hidden_states=hidden).sample.chunk(2)
            latents = scheduler.step(empty + GUIDANCE * (own - empty), timestep, latents).prev_sample
    return latents[0].flatten().numpy()


def our_run(model: audit.Model, steps: int = STEPS) -> np.ndarray:
    table = audit.generate(model, [CAPTION], [SEED], steps, GUIDANCE, output="latents")
    assert table["status"].to_pylist() == ["ok"]
    return np.array(table["latents"][0].as_py())


def their_screen(model: audit.Model, intended: dict[str, Any]) -> tuple[float, float]:
    """`noise_magnitude` and `one_step_error` at the first timestep at which the noise schedule leaves any image."""
    scheduler = DDIMScheduler(**intended)
    scheduler.set_timesteps(50)
    timestep = next(int(t) for t in scheduler.timesteps if scheduler.alphas_cumprod[t] > 0)
    alpha = scheduler.alphas_cumprod[timestep].double()
    noise = initial_latent(SEED, SHAPE).double()[None]
    with torch.no_grad():
        empty, own = (
            model.unet(
                noise, timestep, encoder_hidden_states=model.encode([text]).tensors["encoder_hidden_states"]
            ).sample
            for text in ("", CAPTION)
        )
    if intended["prediction_type"] == "v_prediction":
        empty, own = (alpha.sqrt() * v + (1 - alpha).sqrt() * noise for v in (empty, own))
    image = (noise - (1 - alpha).sqrt() * (empty + 7.5 * (own - empty))) / alpha.sqrt()
    return float((own - empty).norm()), float((image - noise).square().mean())


def check(model: audit.Model, config: dict[str, Any], intended: dict[str, Any]) -> None:
    """Both agree for this scheduler file."""
    ours = replace(model, scheduler_config=resolve(config, config["_class_name"]))
    theirs = their_run(model, intended)
    np.testing.assert_allclose(our_run(ours) / np.abs(theirs).max(), theirs / np.abs(theirs).max(), **CLOSE)
    row = audit.screen(ours, [CAPTION], [SEED], ["noise_magnitude", "one_step_error"]).to_pylist()[0]
    np.testing.assert_allclose(
        [row["noise_magnitude"], row["one_step_error"]], their_screen(model, intended), rtol=1e-6
    )


INTENDED = [entry["intended"] for entry in TABLE]


# tests/audit/models/test_schedulers.py has what each file resolves to. Here, one file for each such result is enough.
@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(
            entry, id=entry["name"], marks=[pytest.mark.soak] if entry["intended"] in INTENDED[:number] else []
        )
        for number, entry in enumerate(TABLE)
    ],
)
def test_a_published_scheduler_file_samples_as_intended(small: audit.Model, entry: dict[str, Any]) -> None:
    check(small, entry["config"], SD | entry["intended"])


def test_trained_betas_are_honoured(small: audit.Model) -> None:
    betas = torch.linspace(0.001, 0.03, 1000).tolist()
    check(small, {"_class_name": "PNDMScheduler", "trained_betas": betas}, SD | _LINEAR | {"trained_betas": betas})


_LINEAR = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}

CONFIGS = st.fixed_dictionaries(
    {
        "_class_name": st.sampled_from(sorted(CLASSES)),
        "beta_start": st.floats(1e-4, 5e-3),
        "beta_end": st.floats(1e-2, 3e-2),
        "beta_schedule": st.sampled_from(["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]),
        "set_alpha_to_one": st.booleans(),
        "num_train_timesteps": st.sampled_from([100, 975, 1000]),
    },
    optional={
        "prediction_type": st.sampled_from(["epsilon", "v_prediction", "sample", "flow_prediction"]),
        "timestep_spacing": st.sampled_from(["leading", "trailing", "linspace"]),
        "rescale_betas_zero_snr": st.booleans(),
        "clip_sample": st.booleans(),
        "steps_offset": st.integers(0, 1),
        "thresholding": st.booleans(),
        "sample_max_value": st.floats(1.0, 10.0),
        "use_karras_sigmas": st.booleans(),
        "shift": st.just(3.0),
    },
)
TWO_LEVELS = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
UNETS = st.fixed_dictionaries(
    {},
    optional={
        "act_fn": st.sampled_from(["silu", "gelu"]),
        "center_input_sample": st.booleans(),
        "flip_sin_to_cos": st.booleans(),
        "freq_shift": st.integers(0, 1),
        "layers_per_block": st.integers(1, 2),
        "use_linear_projection": st.booleans(),
        "mid_block_type": st.sampled_from(["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"]),
        "only_cross_attention": st.booleans(),
        "resnet_time_scale_shift": st.sampled_from(["default", "scale_shift"]),
    },
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(config=CONFIGS, unet=UNETS)
def test_any_scheduler_and_unet_agree_or_are_refused(
    small: audit.Model, config: dict[str, Any], unet: dict[str, Any]
) -> None:
    """The reference is diffusers' own reading of the same file, as its pipeline mends it."""
    model = with_unet(small, small_unet(small, **TWO_LEVELS | unet))
    try:
        resolved = resolve(config, config["_class_name"])
        audit.screen(replace(model, scheduler_config=resolved), [])
    except AuditError:
        event("refused")
        return
    event("agrees")
    theirs = DDIMScheduler.from_config(config, clip_sample=False, steps_offset=1).config
    check(model, config, {key: theirs[key] for key in SD})


def test_with_zero_terminal_snr_no_detector_is_constant_or_infinite(small: audit.Model) -> None:
    model = replace(small, scheduler_config=SD | ZERO_SNR)
    detectors = ["noise_magnitude", "seed_agreement", "one_step_error", "noise_profile", "noise_alignment"]
    table = audit.screen(model, ["a dog", "a red bus", "a cat on a mat"], [0, 1], detectors)
    assert set(table["status"].to_pylist()) == {"ok"}
    for name in ("noise_magnitude", "one_step_error", "noise_alignment"):
        assert len(set(table[name].to_pylist())) == table.num_rows
    assert np.linalg.norm(table["direction"].to_pylist(), axis=1) == pytest.approx(1)
    assert np.ptp(np.array(table["noise_response"].to_pylist())[:, 0]) > 1e-3


def test_its_first_step_is_that_of_velocity(small: audit.Model) -> None:
    """At alpha 0 the predicted image is -v: nothing is divided by alpha."""
    model = replace(small, scheduler_config=SD | ZERO_SNR)
    np.testing.assert_allclose(our_run(model, 1), their_run(small, SD | ZERO_SNR, 1), **CLOSE)


def test_what_a_score_depends_on_has_every_sampling_parameter(small: audit.Model) -> None:
    context = json.loads(audit.generate(small, [], output="latents").schema.metadata[b"crossaudit"])
    assert context["scheduler"].keys() == SD.keys()
