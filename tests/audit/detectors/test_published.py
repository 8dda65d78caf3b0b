"""What others published, and what we derive from the profile, against plain loops in float64."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import replace
from functools import cache
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
SHAPE = (4, 16, 16)


@pytest.fixture(params=["epsilon", "v_prediction"])
def model(request: pytest.FixtureRequest, small: audit.Model) -> audit.Model:
    """The same network, read as either of the two."""
    return replace(small, scheduler_config={**small.scheduler_config, "prediction_type": request.param})


def alphas() -> Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


@pytest.fixture(scope="module")
def outputs(exact: StableDiffusionPipeline) -> Callable[[int, int], list[Tensor]]:
    """What the network gives for a timestep and a seed in float64, without and with the caption."""
    conditional, unconditional = exact.encode_prompt(CAPTION, "cpu", 1, True)

    @cache
    @torch.no_grad()
    def found(t: int, seed: int) -> list[Tensor]:
        noise, texts = initial_latent(seed, SHAPE).double()[None], (unconditional, conditional)
        return [exact.unet(noise, t, encoder_hidden_states=hidden).sample for hidden in texts]

    return found


def epsilons(model: audit.Model, outputs: Any, t: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The initial noise, `eps(∅)` and `eps(c)` at timestep t, all [1, 4, 16, 16]."""
    noise = initial_latent(seed, SHAPE).double()[None]
    unconditional, conditional = outputs(t, seed)
    if model.scheduler_config["prediction_type"] == "v_prediction":
        alpha = alphas()[t]
        return noise, *(alpha.sqrt() * each + (1 - alpha).sqrt() * noise for each in (unconditional, conditional))
    return noise, unconditional, conditional


def test_noise_alignment_is_the_mean_cosine_at_the_third_to_last_timestep(model: audit.Model, outputs: Any) -> None:
    _, unconditional, conditional = epsilons(model, outputs, 41, seed=5)
    a, b = (
        unconditional[0].flatten(1).T,
        (conditional - unconditional)[0].flatten(1).T,
    )  # one row per position, one column per channel
    cosines = [float(x @ y) / float(x.norm() * y.norm()) for x, y in zip(a, b, strict=True)]
    found = audit.screen(model, [CAPTION], seeds=[5], detectors=["noise_alignment"])["noise_alignment"][0].as_py()
    assert found == pytest.approx(np.mean(cosines), abs=1e-5)


def test_one_step_error_is_how_far_a_guided_step_to_sigma_zero_goes(model: audit.Model, outputs: Any) -> None:
    noise, unconditional, conditional = epsilons(model, outputs, 981, seed=5)
    alpha = alphas()[981]
    sample = (noise - (1 - alpha).sqrt() * (unconditional + 7.5 * (conditional - unconditional))) / alpha.sqrt()
    found = audit.screen(model, [CAPTION], seeds=[5], detectors=["one_step_error"])["one_step_error"][0].as_py()
    assert found == pytest.approx(float((sample - noise).square().mean()), rel=1e-5)


def test_one_step_is_that_of_diffusers(small: audit.Model, outputs: Any) -> None:
    """A DDIM schedule of one step, started at 981, ends at sigma 0 where alpha is set to one."""
    noise, unconditional, conditional = epsilons(small, outputs, 981, seed=5)
    scheduler = DDIMScheduler.from_config(small.scheduler_config, set_alpha_to_one=True, steps_offset=981)
    scheduler.set_timesteps(1)
    assert scheduler.timesteps.tolist() == [981]
    sample = scheduler.step(unconditional + 7.5 * (conditional - unconditional), 981, noise).prev_sample
    found = audit.screen(small, [CAPTION], seeds=[5], detectors=["one_step_error"])["one_step_error"][0].as_py()
    assert found == pytest.approx(float((sample - noise).square().mean()), rel=1e-4)


def test_a_caption_that_changes_nothing_is_aligned_with_nothing(small: audit.Model) -> None:
    assert audit.screen(small, [""], detectors=["noise_alignment"])["noise_alignment"].to_pylist() == [0.0]


def test_the_early_profile_is_the_beginning_of_the_profile(small: audit.Model) -> None:
    row = audit.screen(small, [CAPTION], detectors=["profile", "attention_profile_early"]).to_pylist()[0]
    assert row["early_entropy"] == row["layer_entropy"][:4]
    assert row["early_bos"] == row["layer_bos"][:4]
    alone = audit.screen(small, [CAPTION], detectors=["attention_profile_early"]).to_pylist()[0]
    np.testing.assert_allclose(alone["early_entropy"], row["early_entropy"], atol=2e-5, rtol=0)


def test_seed_agreement_is_the_mean_cosine_of_the_directions_of_the_seeds(model: audit.Model, outputs: Any) -> None:
    directions = []
    for seed in (1, 4, 5):
        _, unconditional, conditional = epsilons(model, outputs, 981, seed)
        directions.append((conditional - unconditional).flatten() / (conditional - unconditional).norm())
    cosines = [float(directions[i] @ directions[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    columns = np.array(audit.screen(model, [CAPTION], [1, 4, 5], ["seed_agreement"])["direction"].to_pylist())
    length = Agreement(np.zeros(columns.shape[1]))(columns.mean(0, keepdims=True))[0]
    assert (9 * length**2 - 3) / 6 == pytest.approx(np.mean(cosines), abs=1e-5)


def test_what_control_captions_share_is_taken_off() -> None:
    shared, control = np.array([3.0, 0.0]), np.array([[3.0, 0.5], [3.0, -0.5]])
    found = Agreement.fit(control)(np.array([shared, shared + [0.0, 2.0]]))
    np.testing.assert_allclose(found, [0.0, 2.0])


def test_one_seed_agrees_with_nothing(small: audit.Model) -> None:
    table = audit.screen(small, [f"a dog {n}" for n in range(9)], [0], ["seed_agreement"])
    with pytest.raises(audit.errors.AuditError, match="compares seeds, but there is only one"):
        audit.calibrate(table, "seed_agreement")


def test_a_calibration_of_agreement_is_read_back(small: audit.Model, tmp_path: Path) -> None:
    captions = [f"{a} {b}" for a in "abcdefghij" for b in "klmnopqrst"]
    table = audit.screen(small, captions, [0, 1], ["seed_agreement"], batch_size=100, resolution=8)
    calibration = audit.calibrate(table, "seed_agreement")
    calibration.save(tmp_path / "calibration.json")
    read = audit.load_calibration(tmp_path / "calibration.json")
    assert read.score(table).equals(calibration.score(table))


def attention_in_float64(model: audit.Model, seed: int, steps: int, last: int) -> list[Explicit]:
    """The attention of the last steps of a guided run in float64: of the forward without the caption, then with it."""
    unet = copy.deepcopy(model.unet).double()
    scheduler = DDIMScheduler.from_config(model.scheduler_config)
    scheduler.set_timesteps(steps)
    texts = model.encode(["", CAPTION]).tensors["encoder_hidden_states"].double().split(1)
    latents, seen = initial_latent(seed, SHAPE).double()[None], []
    for step, timestep in enumerate(scheduler.timesteps):
        if step >= steps - last:
            seen.append(Explicit())
            unet.set_attn_processor(seen[-1])
        with torch.no_grad():
            eps = [unet(latents, timestep, encoder_hidden_states=hidden).sample for hidden in texts]
        latents = scheduler.step(eps[0] + 7.5 * (eps[1] - eps[0]), timestep, latents).prev_sample
    return seen


def test_the_trajectory_profile_is_the_mean_over_the_last_fifth(small: audit.Model) -> None:
    table = audit.generate(small, [CAPTION], [2], 10, detectors=["trajectory_profile"], output="latents")
    last, found = attention_in_float64(small, 2, steps=10, last=2), table.to_pylist()[0]
    means_TLK = torch.stack([torch.cat(step.means[len(small.layers) :]) for step in last])
    entropy_TL = -(means_TLK * means_TLK.log()).sum(-1)
    np.testing.assert_allclose(found["late_entropy"], entropy_TL.mean(0), atol=1e-5)
    np.testing.assert_allclose(found["late_bos"], means_TLK[..., 0].mean(0), atol=1e-5)


def test_the_bright_ending_is_the_attention_to_eos_of_the_finest_down_layers_in_the_last_step(sd1: audit.Model) -> None:
    table = audit.generate(sd1, [CAPTION, "a dog"], [2], 2, detectors=["bright_ending"], output="latents")
    (last,) = attention_in_float64(sd1, 2, steps=2, last=1)
    maps, eos = last.maps[16:18], len(sd1.tokenizer(CAPTION).input_ids) - 1
    finest = torch.stack([attention[0, :, eos] for attention in maps]).mean(0)
    expected = (255 * finest / finest.max()).reshape(16, 16).numpy()
    found = np.asarray(Image.open(io.BytesIO(table["region"][0].as_py())))
    assert found.shape == (16, 16)
    assert found.max() == 255
    np.testing.assert_allclose(found, expected, atol=0.51)


def test_a_mask_gives_no_score(small: audit.Model) -> None:
    table = audit.generate(small, ["a dog"], steps=2, detectors=["bright_ending"], output="latents")
    with pytest.raises(audit.errors.UsageError, match="no detector 'bright_ending' gives a score"):
        audit.calibrate(table, "bright_ending")
