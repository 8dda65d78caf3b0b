from __future__ import annotations

import torch

from audit.models.noise import initial_latent, initial_latents


def test_the_noise_of_a_seed_is_fixed() -> None:
    """Drawn once with torch 2.14; another torch that draws other noise breaks every stored calibration."""
    expected = torch.tensor([-1.1258398, -1.1523602, -0.2505786, -0.4338788])
    torch.testing.assert_close(initial_latent(0, (4, 16, 16)).flatten()[:4], expected, atol=1e-6, rtol=0)


def test_it_is_what_a_diffusers_user_draws() -> None:
    drawn = torch.randn((1, 4, 16, 16), generator=torch.Generator("cpu").manual_seed(7))
    assert torch.equal(initial_latent(7, (4, 16, 16)), drawn[0])


def test_it_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    initial_latent(3, (4, 8, 8))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_noise_of_several_seeds_is_that_of_each_in_float32() -> None:
    noise_SCHW = initial_latents([5, 6], (4, 8, 8), torch.device("cpu"))
    assert noise_SCHW.dtype == torch.float32
    assert torch.equal(noise_SCHW[1], initial_latent(6, (4, 8, 8)))
