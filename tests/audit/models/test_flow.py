"""The schedule of flow matching: its conversions are exact, and its steps are those of diffusers."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from audit.models.flow import FlowSchedule, screen_flow

POSITIONS = (0, 24, 49)


def test_the_velocity_of_a_known_noise_and_image_gives_both_back() -> None:
    image, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    schedule = screen_flow()
    for position in POSITIONS:
        level = schedule.timesteps[position] / 1000
        latents, velocity = (1 - level) * image + level * noise, noise - image
        torch.testing.assert_close(schedule.to_epsilon(velocity, latents, position), noise, atol=1e-14, rtol=0)
        torch.testing.assert_close(schedule.to_original(velocity, latents, position), image, atol=1e-14, rtol=0)


def test_the_response_is_the_difference_of_the_predicted_noise() -> None:
    latents, own, without = torch.randn(3, 1, 4, 8, 8, dtype=torch.float64)
    schedule = screen_flow()
    for position in POSITIONS:
        both = [schedule.to_epsilon(output, latents, position) for output in (own, without)]
        torch.testing.assert_close(schedule.response(own, without, position), both[0] - both[1])


def test_a_screen_looks_at_the_signal_to_noise_ratios_of_stable_diffusion() -> None:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alphas = (1 - betas).cumprod(0)
    schedule = screen_flow()
    for position in range(50):
        level, alpha = schedule.timesteps[position] / 1000, float(alphas[981 - 20 * position])
        assert ((1 - level) / level) ** 2 == pytest.approx(alpha / (1 - alpha), rel=1e-3)
        assert schedule.alpha(position) == pytest.approx(alpha, rel=1e-3)


def test_noise_is_scaled_to_the_variance_of_the_input() -> None:
    noise = torch.ones(1, 1, 1, 1)
    level = screen_flow().timesteps[24] / 1000
    assert float(screen_flow().noisy(noise, 24)) == pytest.approx(((1 - level) ** 2 + level**2) ** 0.5)


def test_steps_are_those_of_diffusers() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(5)
    schedule = FlowSchedule(theirs.sigmas)
    assert schedule.timesteps == theirs.timesteps.tolist()
    own = other = torch.randn(1, 4, 8, 8)
    for position, timestep in enumerate(theirs.timesteps):
        output = torch.randn(1, 4, 8, 8)
        own = schedule.step(output, position, own)
        other = theirs.step(output, timestep, other, return_dict=False)[0]
    assert torch.equal(own, other)


def test_steps_are_those_of_a_multistep_solver_of_order_1() -> None:
    theirs = DPMSolverMultistepScheduler(
        flow_shift=3.0, prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=1
    )
    theirs.set_timesteps(5)
    schedule = FlowSchedule(theirs.sigmas)
    own = other = torch.randn(1, 4, 8, 8)
    for position, timestep in enumerate(theirs.timesteps):
        output = torch.randn(1, 4, 8, 8)
        own = schedule.step(output, position, own)
        other = theirs.step(output, timestep, other, return_dict=False)[0]
    torch.testing.assert_close(own, other)


def test_pure_noise_says_nothing_of_the_caption() -> None:
    assert FlowSchedule([1.0, 0.5, 0.0]).first_informative == 1
    assert FlowSchedule([0.9, 0.5, 0.0]).first_informative == 0
