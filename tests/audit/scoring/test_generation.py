from __future__ import annotations

import gc
import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

import audit
from audit import schema
from audit.detectors import RUN
from audit.detectors.detector import TrajectoryStep
from audit.detectors.entropy_trajectory import EntropyTrajectory
from audit.errors import AuditError
from audit.models.noise import initial_latent

CAPTIONS = ["a dog", "", "a serene beach at sunrise, 35mm"]
TRAJECTORY = ["entropy_trajectory", "noise_magnitude_mean"]


def latents_of(table: Any) -> np.ndarray:
    return np.array(table["latents"].to_pylist()).reshape(-1, 4, 16, 16)


def their_latents(
    pipeline: StableDiffusionPipeline, captions: list[str], seed: int, steps: int, scale: float
) -> np.ndarray:
    noise = initial_latent(seed, (4, 16, 16)).expand(len(captions), -1, -1, -1)
    found = pipeline(captions, latents=noise, num_inference_steps=steps, guidance_scale=scale, output_type="latent")
    return found.images.numpy()


@pytest.mark.parametrize("scale", [7.5, 1.0, 0.0])
def test_latents_are_those_of_diffusers_for_the_same_noise(
    small: audit.Model, pipeline: StableDiffusionPipeline, scale: float
) -> None:
    table = audit.generate(small, CAPTIONS, seeds=[3], steps=4, guidance_scale=scale, output="latents")
    np.testing.assert_allclose(latents_of(table), their_latents(pipeline, CAPTIONS, 3, 4, scale), atol=2e-4, rtol=0)


def test_latents_of_a_v_prediction_model_are_those_of_diffusers(
    small: audit.Model, pipeline: StableDiffusionPipeline
) -> None:
    model = replace(small, scheduler_config={**small.scheduler_config, "prediction_type": "v_prediction"})
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, prediction_type="v_prediction")
    table = audit.generate(model, ["a dog"], steps=4, output="latents")
    np.testing.assert_allclose(latents_of(table), their_latents(pipeline, ["a dog"], 0, 4, 7.5), atol=2e-4, rtol=0)


@pytest.mark.parametrize("scale", [7.5, pytest.param(1.0, marks=pytest.mark.soak)])
def test_latents_are_those_of_the_models_own_pipeline(tiny: audit.Model, scale: float) -> None:
    table = audit.generate(tiny, CAPTIONS[:2], seeds=[3], steps=3, guidance_scale=scale, output="latents")
    theirs = their_latents(tiny.pipeline(), CAPTIONS[:2], 3, 3, scale)
    np.testing.assert_allclose(latents_of(table), theirs, atol=2e-4, rtol=0)


def test_the_models_own_pipeline_keeps_a_scheduler_that_diffusers_would_change(small: audit.Model) -> None:
    model = replace(small, scheduler_config={**small.scheduler_config, "steps_offset": 0, "clip_sample": True})
    assert model.pipeline().scheduler.config["steps_offset"] == 0
    table = audit.generate(model, ["a dog"], steps=5, output="latents")
    np.testing.assert_allclose(
        latents_of(table), their_latents(model.pipeline(), ["a dog"], 0, 5, 7.5), atol=2e-4, rtol=0
    )


def test_images_are_those_of_diffusers(small: audit.Model, pipeline: StableDiffusionPipeline) -> None:
    table = audit.generate(small, ["a dog", "a cat"], seeds=[0, 1], steps=5)
    noise = torch.stack([initial_latent(seed, (4, 16, 16)) for seed in (0, 1)])
    theirs = pipeline(["a dog"] * 2, latents=noise, num_inference_steps=5, guidance_scale=7.5).images
    for png, image in zip(table["image"].to_pylist(), theirs, strict=False):
        ours = Image.open(io.BytesIO(png))
        assert ours.size == image.size == (32, 32)
        assert np.abs(np.array(ours, dtype=int) - np.array(image, dtype=int)).max() <= 1


def test_a_decoder_that_runs_out_of_memory_does_not_repeat_the_run(
    small: audit.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = audit.generate(small, ["a dog", "a cat", "a cup"], steps=2)["image"]
    forwards: list[int] = []
    decoded: list[int] = []
    decode = small.vae.decode

    def full(latents_BCHW: torch.Tensor) -> Any:
        decoded.append(len(latents_BCHW))
        if len(latents_BCHW) > 1:
            raise torch.OutOfMemoryError("no room")
        return decode(latents_BCHW)

    monkeypatch.setattr(small.vae, "decode", full)
    handle = small.unet.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    found = audit.generate(small, ["a dog", "a cat", "a cup"], steps=2)["image"]
    handle.remove()
    assert forwards == [6, 6]
    assert decoded == [3, 1, 1, 1]
    for one, other in zip(found.to_pylist(), expected.to_pylist(), strict=True):
        pixels, wanted = (np.asarray(Image.open(io.BytesIO(image)), np.int16) for image in (one, other))
        assert np.abs(pixels - wanted).max() <= 1


def test_one_row_per_caption_and_seed_caption_major(small: audit.Model) -> None:
    table = audit.generate(small, ["b", "a"], seeds=[7, 3], steps=2, detectors=TRAJECTORY)
    assert table["caption"].to_pylist() == ["b", "b", "a", "a"]
    assert table["seed"].to_pylist() == [7, 3, 7, 3]
    assert table.schema.equals(schema.scored([*EntropyTrajectory.columns, "noise_magnitude_mean"], output="image"))
    assert np.array(table["entropy_steps"].to_pylist()).shape == (4, 2)
    np.testing.assert_allclose(np.sum(table["token_attention"].to_pylist(), axis=1), 1, atol=1e-5)


def test_nothing_to_generate_gives_the_same_schema(small: audit.Model) -> None:
    table = audit.generate(small, [], detectors=TRAJECTORY, steps=2)
    assert table.num_rows == 0
    assert table.schema.equals(audit.generate(small, ["a"], detectors=TRAJECTORY, steps=2).schema, check_metadata=True)


def test_a_caption_gets_the_same_latents_and_scores_in_any_batch(small: audit.Model) -> None:
    call: dict[str, Any] = {"seeds": [0, 1], "steps": 2, "output": "latents", "detectors": TRAJECTORY}
    whole = audit.generate(small, CAPTIONS, **call, batch_size=6)
    for batch_size in (1, 4):
        split = audit.generate(small, CAPTIONS, **call, batch_size=batch_size)
        np.testing.assert_allclose(latents_of(split), latents_of(whole), atol=2e-4)
        for name in ("entropy_trajectory", "entropy_trajectory_signed", "noise_magnitude_mean"):
            np.testing.assert_allclose(split[name].to_numpy(), whole[name].to_numpy(), atol=2e-5)


def test_detectors_do_not_change_what_is_generated(small: audit.Model) -> None:
    call: dict[str, Any] = {"steps": 4, "output": "latents"}
    plain = audit.generate(small, CAPTIONS, **call)
    assert audit.generate(small, CAPTIONS, **call, detectors=TRAJECTORY)["latents"] == plain["latents"]


def test_noise_magnitude_mean_is_the_mean_along_the_run(small: audit.Model, exact: StableDiffusionPipeline) -> None:
    scheduler = DDIMScheduler.from_config(exact.scheduler.config)
    scheduler.set_timesteps(3)
    conditional, unconditional = exact.encode_prompt("a dog", "cpu", 1, True)
    latents, norms = initial_latent(0, (4, 16, 16)).double()[None], []
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            eps_c = exact.unet(latents, timestep, encoder_hidden_states=conditional).sample
            eps_unconditional = exact.unet(latents, timestep, encoder_hidden_states=unconditional).sample
            norms.append(float((eps_c - eps_unconditional).norm()))
            latents = scheduler.step(
                eps_unconditional + 7.5 * (eps_c - eps_unconditional), timestep, latents
            ).prev_sample
    table = audit.generate(small, ["a dog", ""], steps=3, detectors=["noise_magnitude_mean"], output="latents")
    assert table["noise_magnitude_mean"][0].as_py() == pytest.approx(np.mean(norms), abs=2e-5)
    assert table["noise_magnitude_mean"][1].as_py() == 0


def test_it_is_measured_without_guidance_too(small: audit.Model) -> None:
    table = audit.generate(small, ["a dog"], steps=2, guidance_scale=1, detectors=TRAJECTORY, output="latents")
    assert table["noise_magnitude_mean"][0].as_py() > 0
    plain = audit.generate(small, ["a dog"], steps=2, guidance_scale=1, output="latents")
    np.testing.assert_allclose(latents_of(table), latents_of(plain), atol=1e-5)


class Watcher:
    """A run detector that looks for attention matrices that are still held after a forward."""

    name, version, columns, needs_attention, needs_response = "watcher", 1, (), True, False
    needs_end = False
    held: list[int] = []

    def __init__(self, prompt_tokens_B: torch.Tensor, steps: int) -> None: ...

    def observe(self, step: int, seen: TrajectoryStep) -> None:
        alive = (thing for thing in gc.get_objects() if type(thing) is torch.Tensor)
        self.held.append(sum(tensor.ndim == 4 and tensor.shape[-1] == 77 for tensor in alive))

    def result(self) -> dict[str, torch.Tensor]:
        return {}


def test_no_attention_matrix_outlives_its_forward(small: audit.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUN, "watcher", Watcher)
    audit.generate(small, ["a dog"], steps=3, detectors=["watcher"], output="latents")
    assert Watcher.held == [0, 0, 0]


def test_what_the_trajectory_holds_does_not_grow_with_the_steps() -> None:
    held = []
    for steps in (10, 100):
        run = EntropyTrajectory(torch.tensor([5, 9]), steps)
        for step in range(steps):
            run.observe(step, TrajectoryStep(torch.full((2, 16, 77), 1 / 77)))
        tensors = [value for value in vars(run).values() if isinstance(value, torch.Tensor)]
        held.append(sum(tensor.numel() for tensor in tensors))
    assert held[0] == held[1]


def test_a_caption_that_turns_into_nan_is_an_error_and_has_no_image(small: audit.Model) -> None:
    hidden_BKD = small.encode(["zebra"]).tensors["encoder_hidden_states"]

    def poison(_module: Any, inputs: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        hidden = given["encoder_hidden_states"].clone()
        hidden[(hidden - hidden_BKD).abs().amax((1, 2)) < 1e-4] = torch.nan
        return inputs, given | {"encoder_hidden_states": hidden}

    plain = audit.generate(small, ["a dog"], steps=2)
    handle = small.unet.register_forward_pre_hook(poison, with_kwargs=True)
    table = audit.generate(small, ["zebra", "a dog"], steps=2, detectors=TRAJECTORY)
    handle.remove()
    assert table["status"].to_pylist() == ["error", "ok"]
    assert table["error"][0].as_py() == "not finite: cross-attention layer 0, step 1 of 2 (t = 501)"
    bad = table.to_pylist()[0]
    assert all(bad[name] is None for name in ["image", *schema.features_of(table.schema)])
    ours, theirs = (np.array(Image.open(io.BytesIO(t["image"][-1].as_py())), dtype=int) for t in (table, plain))
    assert np.abs(ours - theirs).max() <= 1


def test_a_row_that_breaks_later_names_that_step(small: audit.Model) -> None:
    def poison(_unet: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs[1] < 500:
            output.sample[-1, 0, 0, 0] = torch.inf

    handle = small.unet.register_forward_hook(poison)
    errors = audit.generate(small, ["a dog", "a cat"], steps=4, output="latents")["error"].to_pylist()
    handle.remove()
    assert errors == [None, "not finite: output of the unet, step 3 of 4 (t = 251)"]


def test_the_metadata_says_what_the_rows_depend_on(small: audit.Model) -> None:
    table = audit.generate(small, ["a dog"], seeds=[1], steps=2, guidance_scale=3.0, detectors=TRAJECTORY)
    context = json.loads(table.schema.metadata[b"crossaudit"])
    assert (context["steps"], context["guidance_scale"], context["seeds"]) == (2, 3.0, [1])
    assert context["detectors"] == {"entropy_trajectory": 1, "noise_magnitude_mean": 1}
    assert context["weights"] == dict(small.weights_sha256)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"detectors": ["profile"]}, "'profile' belongs to audit.screen"),
        ({"detectors": ["noise_magnitude"]}, "'noise_magnitude' belongs to audit.screen"),
        ({"detectors": ["nonsense"]}, "unknown detector 'nonsense'"),
        ({"output": "video"}, "output is 'video'"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 2000}, "steps is 2000"),
    ],
)
def test_wrong_use_is_an_error_that_says_what(small: audit.Model, call: dict[str, Any], message: str) -> None:
    with pytest.raises(AuditError, match=message):
        audit.generate(small, ["a dog"], **call)
