"""What others published, and what we derive from the profile, against plain loops in float64."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor

import audit
from audit.calibration.distance import Agreement
from audit.models.noise import initial_latent
from tests.support.explicit import Explicit

CAPTION = "a serene beach at sunrise, 35mm"


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, sd1: audit.Model) -> audit.Model:
    """The same network, read as either of the two."""
    return replace(sd1, scheduler_config={**sd1.scheduler_config, "prediction_type": request.param})


def alphas() -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def epsilons(model: audit.Model, exact: StableDiffusionPipeline, t: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The initial noise, `eps(∅)` and `eps(c)` at timestep t, all [1, 4, 16, 16]."""
    noise = initial_latent(seed, (4, 16, 16)).double()[None]
    conditional, unconditional = exact.encode_prompt(CAPTION, "cpu", 1, True)
    with torch.no_grad():
        outputs = [exact.unet(noise, t, encoder_hidden_states=hidden).sample for hidden in (unconditional, conditional)]
    if model.scheduler_config["prediction_type"] == "v_prediction":
        alpha = alphas()[t]
        outputs = [alpha.sqrt() * output + (1 - alpha).sqrt() * noise for output in outputs]
    return noise, outputs[0], outputs[1]


def test_noise_alignment_is_the_mean_cosine_at_the_third_to_last_timestep(
    model: audit.Model, exact: StableDiffusionPipeline
) -> None:
    _, unconditional, conditional = epsilons(model, exact, 41, seed=5)
    a, b = (
        unconditional[0].flatten(1).T,
        (conditional - unconditional)[0].flatten(1).T,
    )  # a row a position, a column a channel
    cosines = [float(x @ y) / float(x.norm() * y.norm()) for x, y in zip(a, b, strict=True)]
    found = audit.screen(model, [CAPTION], seeds=[5], detectors=["noise_alignment"])["noise_alignment"][0].as_py()
    assert found == pytest.approx(np.mean(cosines), abs=1e-5)


def test_one_step_error_is_how_far_a_guided_step_to_sigma_zero_goes(
    model: audit.Model, exact: StableDiffusionPipeline
) -> None:
    noise, unconditional, conditional = epsilons(model, exact, 981, seed=5)
    alpha = alphas()[981]
    sample = (noise - (1 - alpha).sqrt() * (unconditional + 7.5 * (conditional - unconditional))) / alpha.sqrt()
    found = audit.screen(model, [CAPTION], seeds=[5], detectors=["one_step_error"])["one_step_error"][0].as_py()
    assert found == pytest.approx(float((sample - noise).square().mean()), rel=1e-5)


def test_one_step_is_that_of_diffusers(sd1: audit.Model, exact: StableDiffusionPipeline) -> None:
    """A DDIM schedule of one step, started at 981, ends at sigma 0 where alpha is set to one."""
    noise, unconditional, conditional = epsilons(sd1, exact, 981, seed=5)
    scheduler = DDIMScheduler.from_config(sd1.scheduler_config, set_alpha_to_one=True, steps_offset=981)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [981]
    sample = scheduler.step(unconditional + 7.5 * (conditional - unconditional), 981, noise).prev_sample
    found = audit.screen(sd1, [CAPTION], seeds=[5], detectors=["one_step_error"])["one_step_error"][0].as_py()
    assert found == pytest.approx(float((sample - noise).square().mean()), rel=1e-4)


def test_a_caption_that_changes_nothing_is_aligned_with_nothing(sd1: audit.Model) -> None:
    assert audit.screen(sd1, [""], detectors=["noise_alignment"])["noise_alignment"].to_pylist() == [0.0]


def test_the_early_profile_is_the_beginning_of_the_profile(sd1: audit.Model) -> None:
    row = audit.screen(sd1, [CAPTION], detectors=["profile", "attention_profile_early"]).to_pylist()[0]
    assert row["early_entropy"] == row["layer_entropy"][:4]
    assert row["early_bos"] == row["layer_bos"][:4]
    alone = audit.screen(sd1, [CAPTION], detectors=["attention_profile_early"]).to_pylist()[0]
    np.testing.assert_allclose(alone["early_entropy"], row["early_entropy"], atol=2e-5, rtol=0)


def test_seed_agreement_is_the_mean_cosine_of_the_directions_of_the_seeds(
    model: audit.Model, exact: StableDiffusionPipeline
) -> None:
    directions = []
    for seed in (1, 4, 6):
        _, unconditional, conditional = epsilons(model, exact, 981, seed)
        directions.append((conditional - unconditional).flatten() / (conditional - unconditional).norm())
    cosines = [float(directions[i] @ directions[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    columns = np.array(audit.screen(model, [CAPTION], [1, 4, 6], ["seed_agreement"])["direction"].to_pylist())
    length = Agreement(np.zeros(columns.shape[1]))(columns.mean(0, keepdims=True))[0]
    assert (9 * length**2 - 3) / 6 == pytest.approx(np.mean(cosines), abs=1e-5)


def test_what_control_captions_share_is_taken_off() -> None:
    shared, control = np.array([3.0, 0.0]), np.array([[3.0, 0.5], [3.0, -0.5]])
    found = Agreement.fit(control)(np.array([shared, shared + [0.0, 2.0]]))
    np.testing.assert_allclose(found, [0.0, 2.0])


def test_one_seed_agrees_with_nothing(sd1: audit.Model) -> None:
    table = audit.screen(sd1, [f"a dog {n}" for n in range(9)], [0], ["seed_agreement"])
    with pytest.raises(audit.errors.AuditError, match="compares seeds, but there is only one"):
        audit.calibrate(table, "seed_agreement")


def test_a_calibration_of_agreement_is_read_back(sd1: audit.Model, tmp_path: Path) -> None:
    table = audit.screen(sd1, [f"{a} {b}" for a in "abcdefghij" for b in "klmnopqrst"], [0, 1], ["seed_agreement"])
    calibration = audit.calibrate(table, "seed_agreement")
    calibration.save(tmp_path / "calibration.json")
    read = audit.load_calibration(tmp_path / "calibration.json")
    assert read.score(table).equals(calibration.score(table))


def run_in_float64(exact: StableDiffusionPipeline, steps: int) -> tuple[list[Explicit], int]:
    """The attention of every step of a guided run, and how many tokens the caption has."""
    scheduler = DDIMScheduler.from_config(exact.scheduler.config)
    scheduler.set_timesteps(steps)
    latents = initial_latent(2, (4, 16, 16)).double()[None]
    conditional, unconditional = exact.encode_prompt(CAPTION, "cpu", 1, True)
    seen = []
    for timestep in scheduler.timesteps:
        recording = Explicit()
        exact.unet.set_attn_processor(recording)
        with torch.no_grad():
            eps = [exact.unet(latents, timestep, encoder_hidden_states=h).sample for h in (unconditional, conditional)]
        latents = scheduler.step(eps[0] + 7.5 * (eps[1] - eps[0]), timestep, latents).prev_sample
        seen.append(recording)
    return seen, len(exact.tokenizer(CAPTION).input_ids)


def generated(model: audit.Model, detector: str, steps: int, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = audit.generate(
        model, [CAPTION, "a dog"], seeds=[2], steps=steps, detectors=[detector], output="latents", **more
    ).to_pylist()[0]
    return found


def test_the_trajectory_profile_is_the_mean_over_the_last_fifth(
    sd1: audit.Model, exact: StableDiffusionPipeline
) -> None:
    row = generated(sd1, "trajectory_profile", steps=10)
    seen, _ = run_in_float64(exact, 10)
    means_TLK = torch.stack([torch.cat(step.means[16:]) for step in seen[-2:]])  # the conditional forward is the second
    entropy_TL = -(means_TLK * means_TLK.log()).sum(-1)
    np.testing.assert_allclose(row["late_entropy"], entropy_TL.mean(0), atol=1e-5)
    np.testing.assert_allclose(row["late_bos"], means_TLK[..., 0].mean(0), atol=1e-5)


def test_the_bright_ending_is_the_attention_to_eos_of_the_finest_down_layers_in_the_last_step(
    sd1: audit.Model, exact: StableDiffusionPipeline
) -> None:
    row = generated(sd1, "bright_ending", steps=5)
    seen, tokens = run_in_float64(exact, 5)
    finest = torch.stack([attention[0, :, tokens - 1] for attention in seen[-1].maps[16:18]]).mean(0)
    expected = (255 * finest / finest.max()).reshape(16, 16).numpy()
    found = np.asarray(Image.open(io.BytesIO(row["region"])))
    assert found.shape == (16, 16)
    assert found.max() == 255
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_a_mask_gives_no_score(sd1: audit.Model) -> None:
    table = audit.generate(sd1, ["a dog"], steps=2, detectors=["bright_ending"], output="latents")
    with pytest.raises(audit.errors.UsageError, match="no detector 'bright_ending' gives a score"):
        audit.calibrate(table, "bright_ending")
