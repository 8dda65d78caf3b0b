from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from torch import Tensor

import audit
from audit.attention.probe import cross_attention_layers
from audit.errors import AuditError, UsageError
from audit.models.noise import initial_latent
from tests.support.explicit import Explicit
from tests.support.small_unet import shallow_unet

SHORT, LONG = "a dog", "a serene beach at sunrise, 35mm, golden hour"


def latents(
    pipeline: StableDiffusionPipeline, prompt: Any, steps: int = 2, guidance: float = 7.5, side: int = 8, **more: Any
) -> Any:
    images = 1 if prompt is None or isinstance(prompt, str) else len(prompt)
    dtype = pipeline.unet.dtype
    images *= more.get("num_images_per_prompt", 1)
    noise = initial_latent(0, (4, side, side)).to(dtype).expand(images, -1, -1, -1)
    return pipeline(
        prompt, latents=noise, num_inference_steps=steps, guidance_scale=guidance, output_type="latent", **more
    ).images.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("keep", "name", "caption"), [("eos", "keep_eos", 0), ("words", "drop_eos", 1)])
def test_latents_are_those_of_the_papers_code(
    plain: StableDiffusionPipeline,
    data: Path,
    expected: dict[str, list[dict[str, Any]]],
    keep: Any,
    name: str,
    caption: int,
) -> None:
    prompt = list(dict.fromkeys(str(row["caption"]) for row in expected["tiny-sd1"]))[caption]
    with audit.mitigated(plain, audit.Rescale(bos_scale=1.25, keep=keep)):
        ours = latents(plain, prompt, steps=50, side=16)
    theirs = np.load(data / f"tiny-sd1-mitigated-caption{caption}-{name}.npy")
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("keep", "visible", "bos_scale"),
    [
        # Each mask and each scale, alone and together.
        ("eos", 4, 0.0),
        ("eos", 4, 1.0),
        ("words", 3, 1.0),
        ("words", 3, 1.25),
        ("all", 77, 3.0),
        *(
            pytest.param(*case, marks=pytest.mark.soak)
            for case in [
                ("eos", 4, 1.25),
                ("eos", 4, 3.0),
                ("words", 3, 0.0),
                ("words", 3, 3.0),
                ("all", 77, 0.0),
                ("all", 77, 1.0),
                ("all", 77, 1.25),
            ]
        ),
    ],
)
def test_it_is_the_definition_in_float64(
    float64: StableDiffusionPipeline, keep: Any, visible: int, bos_scale: float
) -> None:
    with audit.mitigated(float64, audit.Rescale(bos_scale=bos_scale, keep=keep)):
        ours = latents(float64, SHORT)
    float64.unet.set_attn_processor(Explicit(visible, bos_scale))
    np.testing.assert_allclose(ours, latents(float64, SHORT), atol=1e-9, rtol=0)


def test_nothing_masked_and_scale_one_is_bitwise_the_plain_pipeline(pipeline: StableDiffusionPipeline) -> None:
    plain = latents(pipeline, [SHORT, LONG])
    with audit.mitigated(pipeline, audit.Rescale(bos_scale=1, keep="all")):
        assert np.array_equal(latents(pipeline, [SHORT, LONG]), plain)


@pytest.mark.parametrize("keep", ["eos", "words"])
@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_prompts_of_unequal_lengths_are_mitigated_as_each_alone(
    pipeline: StableDiffusionPipeline, keep: Any, guidance: float
) -> None:
    with audit.mitigated(pipeline, audit.Rescale(keep=keep)):
        together = latents(pipeline, [SHORT, LONG, ""], guidance=guidance)
        alone = [latents(pipeline, prompt, guidance=guidance)[0] for prompt in (SHORT, LONG, "")]
    np.testing.assert_allclose(together, alone, atol=1e-4, rtol=0)


def test_several_images_a_prompt(pipeline: StableDiffusionPipeline) -> None:
    with audit.mitigated(pipeline, audit.Rescale()):
        together = latents(pipeline, [SHORT, LONG], num_images_per_prompt=2)
        alone = [latents(pipeline, prompt)[0] for prompt in (SHORT, LONG)]
    np.testing.assert_allclose(together, np.repeat(alone, 2, axis=0), atol=1e-4, rtol=0)


def test_a_longer_negative_prompt_keeps_its_words(float64: StableDiffusionPipeline) -> None:
    with audit.mitigated(float64, audit.Rescale(keep="eos")):
        ours = latents(float64, SHORT, negative_prompt=LONG)
    longer = len(float64.tokenizer(LONG).input_ids)
    float64.unet.set_attn_processor(Explicit(longer, 1.25))
    np.testing.assert_allclose(ours, latents(float64, SHORT, negative_prompt=LONG), atol=1e-9, rtol=0)


def test_prompt_embeds_need_the_number_of_their_tokens(pipeline: StableDiffusionPipeline) -> None:
    embeds, empty = pipeline.encode_prompt(SHORT, "cpu", 1, True)
    given = {"prompt_embeds": embeds, "negative_prompt_embeds": empty}
    with audit.mitigated(pipeline, audit.Rescale()):
        by_text = latents(pipeline, SHORT)
        with pytest.raises(UsageError, match="prompt_tokens="):
            latents(pipeline, None, **given)
    with audit.mitigated(pipeline, audit.Rescale(), prompt_tokens=4):
        assert np.array_equal(latents(pipeline, None, **given), by_text)
    with audit.mitigated(pipeline, audit.Rescale(keep="all")):
        latents(pipeline, None, **given)
    with (
        audit.mitigated(pipeline, audit.Rescale(), prompt_tokens=[4, 5]),
        pytest.raises(UsageError, match="1 prompts of 77 positions"),
    ):
        latents(pipeline, None, **given)


@pytest.mark.parametrize("guidance", [7.5, 1.0])
def test_image_to_image_pipelines(pipeline: StableDiffusionPipeline, guidance: float) -> None:
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def run() -> Any:
        generator = torch.Generator().manual_seed(1)
        return other(
            SHORT, image, num_inference_steps=4, guidance_scale=guidance, generator=generator, output_type="latent"
        ).images.numpy()

    plain = run()
    with audit.mitigated(other, audit.Rescale()):
        assert not np.allclose(run(), plain)
    assert np.array_equal(run(), plain)


@pytest.fixture(scope="module")
def calibration(model: audit.Model) -> audit.Calibration:
    things = ("dog", "cat", "cup", "hat", "sea", "car", "sun", "tree", "road", "bird", "fish", "lamp", "door", "book")
    looks = ("red", "blue", "old", "wet", "tiny", "torn")
    control = [f"a {look} {thing}" for look in looks for thing in things]
    return audit.calibrate(
        audit.screen(model, control, detectors=["noise_magnitude"], batch_size=84), "noise_magnitude"
    )


def test_only_the_prompts_that_a_calibration_flags_are_mitigated(
    model: audit.Model, calibration: audit.Calibration
) -> None:
    pipeline, prompts = model.pipeline(), [SHORT, LONG, "two cats", ""]
    scores = calibration.score(audit.screen(model, prompts, detectors=["noise_magnitude"]))
    p = np.array(scores["p_unseen"].to_pylist())
    limit = float(np.sort(p)[1])
    plain = latents(pipeline, prompts)
    with audit.mitigated(pipeline, audit.Rescale()):
        all_mitigated = latents(pipeline, prompts)
    with audit.mitigated(pipeline, audit.Rescale(), only=calibration, max_p=limit):
        ours = latents(pipeline, prompts)
    flagged = (p <= limit)[:, None, None, None]
    assert 0 < flagged.sum() < len(prompts)
    np.testing.assert_allclose(ours, np.where(flagged, all_mitigated, plain), atol=1e-4, rtol=0)
    with audit.mitigated(pipeline, audit.Rescale(), only=calibration, max_p=float(p.min()) / 2):
        assert np.array_equal(latents(pipeline, prompts), plain)


def test_prompts_are_screened_at_the_resolution_of_the_calibration(model: audit.Model) -> None:
    control = [f"a {look} {thing}" for look in ("red", "old", "wet", "torn") for thing in "abcdefghijklmnopqrstuvwxyz"]
    screened = audit.screen(model, control, detectors=["noise_magnitude"], batch_size=104, resolution=8)
    small, pipeline, sizes = audit.calibrate(screened, "noise_magnitude"), model.pipeline(), []
    handle = model.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    try:
        with audit.mitigated(pipeline, only=small):
            latents(pipeline, [SHORT])
            first = len(sizes)
            latents(pipeline, [LONG])
    finally:
        handle.remove()
    screened = [at for at, size in enumerate(sizes) if size == (4, 4)]
    assert screened == [0, 1, first]  # the second call knows what the model predicts without a prompt
    assert set(sizes) == {(4, 4), (8, 8)}


def test_only_needs_a_pipeline_whose_weights_are_known_and_prompts_in_words(
    pipeline: StableDiffusionPipeline, model: audit.Model, calibration: audit.Calibration
) -> None:
    with pytest.raises(UsageError, match="cannot check that the calibration is valid for the weights"):
        audit.mitigate_(pipeline, audit.Rescale(), only=calibration)
    with pytest.raises(UsageError, match="max_p is 0"):
        audit.mitigate_(model.pipeline(), only=calibration, max_p=0)
    with pytest.raises(UsageError, match="withholds them: the controls are unlike"):
        audit.mitigate_(model.pipeline(), only=replace(calibration, withheld="the controls are unlike"))
    ours = model.pipeline()
    embeds, empty = ours.encode_prompt(SHORT, "cpu", 1, True)
    with (
        audit.mitigated(ours, audit.Rescale(), prompt_tokens=4, only=calibration),
        pytest.raises(UsageError, match="screens prompts"),
    ):
        latents(ours, None, prompt_embeds=embeds, negative_prompt_embeds=empty)


def hooks(pipeline: StableDiffusionPipeline) -> int:
    modules = list(pipeline.unet.modules())
    replaced = sum("forward" in vars(module) for module in modules)
    return replaced + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_no_trace_is_left_even_after_an_exception(pipeline: StableDiffusionPipeline) -> None:
    plain, attributes = latents(pipeline, SHORT), set(vars(pipeline))

    def interrupted() -> None:
        with audit.mitigated(pipeline, audit.Rescale()):
            assert not np.array_equal(latents(pipeline, SHORT), plain)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert hooks(pipeline) == 0
    assert set(vars(pipeline)) == attributes
    assert np.array_equal(latents(pipeline, SHORT), plain)


def test_installed_for_good_until_taken_out(pipeline: StableDiffusionPipeline) -> None:
    plain = latents(pipeline, SHORT)
    audit.mitigate_(pipeline, audit.Rescale())
    mitigated = latents(pipeline, SHORT)
    assert not np.array_equal(mitigated, plain)
    assert np.array_equal(latents(pipeline, SHORT), mitigated)
    with pytest.raises(UsageError, match="already"):
        audit.mitigate_(pipeline, audit.Rescale())
    audit.unmitigate_(pipeline)
    assert np.array_equal(latents(pipeline, SHORT), plain)
    with pytest.raises(UsageError, match="not mitigated"):
        audit.unmitigate_(pipeline)


def test_a_layer_inside_to_k_such_as_lora_is_rescaled_with_it(float64: StableDiffusionPipeline) -> None:
    generator = torch.Generator().manual_seed(0)

    class Adapted(torch.nn.Module):
        """What peft makes of a linear layer: the base layer plus a product of two thin ones."""

        def __init__(self, base: torch.nn.Linear) -> None:
            super().__init__()
            self.base = base
            self.down = torch.randn(base.in_features, 2, generator=generator, dtype=torch.float64)
            self.up = torch.randn(2, base.out_features, generator=generator, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + x @ self.down @ self.up

    for layer in cross_attention_layers(float64.unet):
        layer.to_k = Adapted(layer.to_k)
    with audit.mitigated(float64, audit.Rescale(bos_scale=2)):
        ours = latents(float64, SHORT)
    float64.unet.set_attn_processor(Explicit(4, 2))
    np.testing.assert_allclose(ours, latents(float64, SHORT), atol=1e-9, rtol=0)


@pytest.mark.parametrize("keep", ["all", "eos"])
@pytest.mark.parametrize("inference", [False, True])
def test_prompt_embeds_that_a_callback_rewrites_are_mitigated_as_they_are(
    float64: StableDiffusionPipeline, keep: Any, inference: bool
) -> None:
    def rewrite(_pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if step == 1:
            tensors["prompt_embeds"].mul_(0.5)
        return {}

    more = {"callback_on_step_end": rewrite, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with torch.inference_mode(inference), audit.mitigated(float64, audit.Rescale(bos_scale=2, keep=keep)):
        ours = latents(float64, SHORT, steps=3, **more)
    float64.unet.set_attn_processor(Explicit(4 if keep == "eos" else 77, 2))
    np.testing.assert_allclose(ours, latents(float64, SHORT, steps=3, **more), atol=1e-9, rtol=0)


def test_offloading_that_wraps_a_projection_meanwhile_is_kept(pipeline: StableDiffusionPipeline) -> None:
    plain = latents(pipeline, SHORT)
    to_k = cross_attention_layers(pipeline.unet)[0].to_k
    with audit.mitigated(pipeline, audit.Rescale(bos_scale=2)):
        inner = to_k.forward
        to_k.forward = wrapper = lambda hidden: inner(hidden)
        assert not np.array_equal(latents(pipeline, SHORT), plain)
    assert to_k.forward is wrapper
    assert np.array_equal(latents(pipeline, SHORT), plain)


def test_an_attention_processor_that_it_would_pass_by_is_refused_by_name(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet.set_attn_processor(Explicit(4, 1))
    with pytest.raises(AuditError, match="Explicit cannot be mitigated"):
        audit.mitigate_(pipeline, audit.Rescale())
    assert hooks(pipeline) == 0


def test_an_unsupported_pipeline_is_named_with_what_is_supported(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet = pipeline.vae
    with pytest.raises(AuditError, match="StableDiffusionPipeline has AutoencoderKL") as error:
        audit.mitigate_(pipeline, audit.Rescale())
    assert "Mitigation supports Stable Diffusion 1.x, 2.x and XL" in str(error.value)


def test_a_unet_that_is_compiled_already_is_refused(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    with pytest.raises(AuditError, match="before torch.compile"):
        audit.mitigate_(pipeline, audit.Rescale())


@pytest.mark.slow
def test_a_unet_compiled_afterwards_is_mitigated(pipeline: StableDiffusionPipeline) -> None:
    pipeline.unet = shallow_unet(pipeline.unet.config.cross_attention_dim, "down")
    audit.mitigate_(pipeline, audit.Rescale())
    batches = [SHORT, LONG], [LONG, SHORT]  # the same shape, other positions to hide
    eager = [latents(pipeline, prompts) for prompts in batches]
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    for prompts, right in zip(batches, eager, strict=True):
        np.testing.assert_allclose(latents(pipeline, prompts), right, atol=1e-4, rtol=0)


def test_a_tokenizer_without_bos_is_refused(pipeline: StableDiffusionPipeline) -> None:
    class Headless:
        bos_token_id = None

    pipeline.tokenizer = Headless()
    with pytest.raises(AuditError, match="does not put BOS first"):
        audit.mitigate_(pipeline, audit.Rescale())


@pytest.mark.parametrize("bos_scale", [float("nan"), float("inf"), -1.0])
def test_a_bos_scale_must_be_finite_and_not_negative(pipeline: StableDiffusionPipeline, bos_scale: float) -> None:
    with pytest.raises(UsageError, match="bos_scale is"):
        audit.mitigate_(pipeline, audit.Rescale(bos_scale=bos_scale))


def test_an_unknown_keep_is_an_error_that_lists_the_known(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(UsageError, match="eos, words, all"):
        audit.mitigate_(pipeline, audit.Rescale(keep="some"))  # type: ignore[arg-type]


def test_the_unet_alone_is_refused_until_a_prompt_is_known(pipeline: StableDiffusionPipeline) -> None:
    with audit.mitigated(pipeline, audit.Rescale()), pytest.raises(UsageError, match="encoded no prompt"):
        pipeline.unet(torch.zeros(1, 4, 16, 16), 1, encoder_hidden_states=torch.zeros(1, 77, 32))
