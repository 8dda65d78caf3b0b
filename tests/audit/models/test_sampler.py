from __future__ import annotations

import pytest
import torch

import audit
from audit.errors import AuditError
from audit.models.sampler import DdimSchedule, ddim
from audit.models.schedule import guide


def test_the_schedule_of_fifty_steps_starts_at_981(sd1: audit.Model) -> None:
    assert ddim(sd1.scheduler_config).timesteps.tolist() == list(range(981, 0, -20))


def test_the_v_of_a_known_noise_and_image_gives_the_noise_back(sd1: audit.Model) -> None:
    schedule = DdimSchedule({**sd1.scheduler_config, "prediction_type": "v_prediction"})
    image, noise = torch.randn(2, 1, 4, 8, 8).double()
    alpha = schedule.alpha(24)
    latents = alpha**0.5 * image + (1 - alpha) ** 0.5 * noise
    v = alpha**0.5 * noise - (1 - alpha) ** 0.5 * image
    torch.testing.assert_close(schedule.to_epsilon(v, latents, 24), noise)


def test_an_epsilon_model_is_left_as_it_is(sd1: audit.Model) -> None:
    output = torch.randn(1, 4, 8, 8)
    assert DdimSchedule(sd1.scheduler_config).to_epsilon(output, torch.randn_like(output), 24) is output


def test_guidance_goes_from_the_unconditional_through_the_conditional() -> None:
    torch.testing.assert_close(guide(torch.tensor(1.0), torch.tensor(3.0), 7.5), torch.tensor(16.0))


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_that_ddim_cannot_run_is_an_error(sd1: audit.Model, steps: int) -> None:
    with pytest.raises(AuditError, match=f"steps is {steps}"):
        ddim(sd1.scheduler_config, steps)
