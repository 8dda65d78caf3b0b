"""The run decides itself which images to mitigate: against the definition, and at no cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import audit
from audit.errors import UsageError
from audit.mitigation.run_bands import fit_run_bands
from audit.mitigation.run_flag import RunFlag

STEPS, GUIDANCE = 4, 5.0
CONTROL = [f"a {look} {thing}" for look in ("red", "old", "wet", "tiny") for thing in ("dog", "cup", "sea")]
PROMPTS = ["a dog", "a serene beach at sunrise, 35mm, golden hour", "blurry", "two cats on a chair"]


@pytest.fixture(scope="module")
def bands(model: audit.Model) -> audit.RunBands:
    return fit_run_bands(model, CONTROL, STEPS, GUIDANCE, seed=100, batch_size=5)


def latents(pipe: Any, prompts: list[str], **more: Any) -> np.ndarray:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)).expand(len(prompts), -1, -1, -1)
    call = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"} | more
    found: np.ndarray = pipe(prompts, latents=noise, **call).images.numpy()
    return found


def fake(guidance: list[list[float]]) -> audit.RunBands:
    norms = tuple(map(tuple, guidance))
    timesteps = tuple(float(step) for step in range(len(norms[0])))
    return audit.RunBands(timesteps, GUIDANCE, (4, 16, 16), (), norms, norms, norms, norms)


@given(
    st.lists(st.lists(st.floats(0.5, 2), min_size=4, max_size=4), min_size=5, max_size=40),
    st.floats(0.2, 1),
    st.integers(1, 4),
)
def test_at_most_max_p_of_the_control_captions_are_flagged(
    guidance: list[list[float]], max_p: float, steps: int
) -> None:
    flag = RunFlag(fake(guidance), max_p, steps)
    relative = np.array(guidance)[:, :steps] / np.median(np.array(guidance)[:, :steps], axis=0)
    flagged = 0
    for run in relative:
        means = [run[: step + 1].mean() for step in range(steps)]
        flagged += any(mean > limit + 1e-12 for mean, limit in zip(means, flag.threshold_F, strict=True))
    assert flagged <= max_p * len(guidance) + 1e-9


def test_at_one_step_the_threshold_is_the_highest_value_that_may_not_be_flagged() -> None:
    flag = RunFlag(fake([[float(value)] for value in range(1, 101)]), 0.05, steps=1)
    assert flag.threshold_F * flag.median_F == pytest.approx([95])  # 96, ..., 100 are flagged


def test_flagged_images_are_mitigated_from_that_step_on_and_others_are_bitwise_plain(
    model: audit.Model, bands: audit.RunBands
) -> None:
    pipe, max_p = model.pipeline(), 0.25
    plain = latents(pipe, PROMPTS)
    flag, steps = RunFlag(bands, max_p), {}
    norms = np.array(fit_run_bands_of(model, PROMPTS).guidance)
    means = np.cumsum(norms[:, :3] / flag.median_F, axis=1) / np.arange(1, 4)
    for number, row in enumerate(means > flag.threshold_F):
        steps[number] = int(np.argmax(row)) if row.any() else None
    assert {None} < set(steps.values())
    with audit.mitigated(pipe, audit.WeakGuidance(0.0), only=bands, max_p=max_p):
        ours = latents(pipe, PROMPTS)
        alone = [latents(pipe, [prompt])[0] for prompt in PROMPTS]
    np.testing.assert_allclose(ours, alone, atol=1e-4, rtol=0)
    for number, step in steps.items():
        if step is None:
            assert np.array_equal(ours[number], plain[number])
        else:
            assert not np.allclose(ours[number], plain[number], atol=1e-4)


def fit_run_bands_of(model: audit.Model, prompts: list[str]) -> audit.RunBands:
    """Record the prompts' own runs, all from the noise of `latents`."""
    from audit.mitigation import run_bands

    recorder, pipe = run_bands._Recorder(), model.pipeline()
    with audit.mitigated(pipe, recorder):
        latents(pipe, prompts)
    norms = recorder.collected("guidance")
    return audit.RunBands((), GUIDANCE, (), (), norms, norms, norms, norms)


def test_the_unet_runs_as_often_as_without_mitigation(model: audit.Model, bands: audit.RunBands) -> None:
    rows: list[int] = []
    pipe = model.pipeline()
    handle = pipe.unet.conv_in.register_forward_hook(lambda _module, args, _out: rows.append(len(args[0])))
    with audit.mitigated(pipe, audit.Rescale(30, "words"), only=bands, max_p=0.25):
        latents(pipe, PROMPTS)
    handle.remove()
    assert rows == [2 * len(PROMPTS)] * STEPS


def test_bands_do_not_depend_on_the_batch_size_and_survive_a_file(
    model: audit.Model, bands: audit.RunBands, tmp_path: Any
) -> None:
    again = fit_run_bands(model, CONTROL, STEPS, GUIDANCE, seed=100, batch_size=2)
    for name in ("guidance", "clean", "update", "latent"):
        assert np.array(getattr(bands, name)).shape == (len(CONTROL), STEPS)
        np.testing.assert_allclose(getattr(again, name), getattr(bands, name), rtol=1e-4)
    bands.save(tmp_path / "bands.json")
    assert audit.load_run_bands(tmp_path / "bands.json") == bands


def test_what_cannot_be_decided_is_refused(model: audit.Model, bands: audit.RunBands) -> None:
    pipe = model.pipeline()
    with pytest.raises(UsageError, match="only 12 runs of control captions"):
        audit.mitigate_(pipe, audit.Rescale(), only=bands, max_p=0.01)
    with audit.mitigated(pipe, audit.Rescale(), only=bands, max_p=0.2):
        with pytest.raises(UsageError, match="only=bands needs guidance"):
            latents(pipe, PROMPTS, guidance_scale=1.0)
        with pytest.raises(UsageError, match="fitted with timesteps"):
            latents(pipe, PROMPTS, num_inference_steps=5)
    with pytest.raises(UsageError, match="bands cannot be fitted"):
        fit_run_bands(model, [], STEPS)
