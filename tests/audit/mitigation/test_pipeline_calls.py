"""What is done to a pipeline after `mitigate_` keeps the mitigation or raises, and no other pipeline is touched."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import Tensor

import audit
from audit.attention.probe import cross_attention_layers
from audit.errors import AuditError, UsageError
from tests.support.adapted import Adapted
from tests.support.small_unet import shallow_unet, small_unet

SHORT, LONG = "a dog", "a serene beach at sunrise, 35mm, golden hour"


@pytest.fixture
def pipe(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    return pipeline


@pytest.fixture
def shallow(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """With a UNet that compiles soon."""
    pipeline.unet = shallow_unet(32, "down").eval().requires_grad_(False)
    return pipeline


def latents(pipe: StableDiffusionPipeline, prompt: Any = SHORT, **more: Any) -> np.ndarray:
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent", "latents": noise} | more
    return pipe(prompt, **call).images.numpy()


def mitigated(pipe: StableDiffusionPipeline) -> np.ndarray:
    """What the pipeline as it is now gives where it is mitigated."""
    with audit.mitigated(pipe, audit.Rescale(bos_scale=3)):
        return latents(pipe)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.allclose(one, other, atol=1e-4, rtol=0))


def test_a_second_pipeline_with_the_same_unet_is_refused_until_it_is_mitigated(pipe: StableDiffusionPipeline) -> None:
    others = [
        StableDiffusionPipeline(**pipe.components, requires_safety_checker=False),
        StableDiffusionPipeline.from_pipe(pipe),
    ]
    plain, right = latents(pipe, LONG), mitigated(pipe)
    with audit.mitigated(pipe, audit.Rescale(bos_scale=3)):
        others.append(StableDiffusionPipeline.from_pipe(pipe))
        others.append(type(pipe)(**pipe.components, requires_safety_checker=False))
        for other in others:
            other.set_progress_bar_config(disable=True)
            latents(pipe, SHORT)
            with pytest.raises(UsageError, match="part of a mitigated pipeline"):
                latents(other, LONG)
            with audit.mitigated(other, audit.Rescale(bos_scale=3)):
                assert same(latents(other), right)
                assert same(latents(pipe), right)
    assert same(latents(others[0], LONG), plain)


def test_an_image_to_image_pipeline_made_of_a_mitigated_one_is_refused(pipe: StableDiffusionPipeline) -> None:
    with audit.mitigated(pipe, audit.Rescale()):
        other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
        with pytest.raises(UsageError, match="mitigate every pipeline that shares the denoiser"):
            other(SHORT, torch.rand(1, 3, 16, 16), num_inference_steps=4)


def test_an_audit_of_a_mitigated_model_is_refused(model: audit.Model) -> None:
    with audit.mitigated(model.pipeline()), pytest.raises(UsageError, match="part of a mitigated pipeline"):
        audit.screen(model, [SHORT])


def test_another_unet_is_mitigated_from_the_next_call_on(pipe: StableDiffusionPipeline) -> None:
    first = pipe.unet
    with audit.mitigated(pipe, audit.Rescale(bos_scale=3)):
        latents(pipe)
        pipe.unet = small_unet(cross_attention_dim=32).eval()
        ours = latents(pipe)
        first(torch.zeros(1, 4, 8, 8), 1, encoder_hidden_states=torch.zeros(1, 77, 32))  # left alone again
    assert same(ours, mitigated(pipe))
    assert not same(ours, latents(pipe))


def adapt(pipe: StableDiffusionPipeline) -> None:
    torch.manual_seed(2)
    for layer in cross_attention_layers(pipe.unet):
        layer.to_k, layer.to_q = Adapted(layer.to_k), Adapted(layer.to_q)


CHANGES = {
    "adapter": adapt,
    "fused": lambda pipe: pipe.unet.fuse_qkv_projections(),
    "sliced": lambda pipe: pipe.enable_attention_slicing(1),
    "processors": lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
    "deep copy": lambda pipe: None,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_later_keeps_the_mitigation(pipe: StableDiffusionPipeline, change: str) -> None:
    audit.mitigate_(pipe, audit.Rescale(bos_scale=3))
    latents(pipe, LONG)
    CHANGES[change](pipe)
    changed = copy.deepcopy(pipe) if change == "deep copy" else pipe
    ours = latents(changed)
    audit.unmitigate_(changed)
    plain = latents(changed)
    assert not same(ours, plain)
    assert same(ours, mitigated(changed))
    assert same(latents(changed), plain)


def test_a_processor_that_is_set_later_and_does_not_fit_is_refused_by_name(pipe: StableDiffusionPipeline) -> None:
    class Own(AttnProcessor2_0):
        pass

    with audit.mitigated(pipe, audit.Rescale()):
        pipe.unet.set_attn_processor(Own())
        with pytest.raises(AuditError, match="attention processor Own cannot be mitigated"):
            latents(pipe)


def test_a_processor_that_a_callback_sets_is_noticed(pipe: StableDiffusionPipeline) -> None:
    class Passes(AttnProcessor2_0):
        def __call__(self, _attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
            return hidden_states

    def change(pipe: Any, _step: int, _t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipe.unet.set_attn_processor(Passes())
        return {}

    with audit.mitigated(pipe, audit.Rescale()), pytest.raises(AuditError, match="4 did not attend exactly once"):
        latents(pipe, callback_on_step_end=change)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "warm"),
    [
        ("whole", True),
        pytest.param("whole", False, marks=pytest.mark.soak),
        pytest.param("repeated blocks", False, marks=pytest.mark.soak),
        pytest.param("repeated blocks", True, marks=pytest.mark.soak),
    ],
)
def test_a_unet_that_is_compiled_in_place(shallow: StableDiffusionPipeline, how: str, warm: bool) -> None:
    right, plain = mitigated(shallow), latents(shallow)
    torch._dynamo.reset()
    compiling = {"whole": shallow.unet.compile, "repeated blocks": shallow.unet.compile_repeated_blocks}[how]
    compiling(backend="eager", fullgraph=True)
    if warm:
        assert same(latents(shallow), plain)
    for _ in range(2):
        assert same(mitigated(shallow), right)
        assert same(latents(shallow), plain)


@pytest.mark.slow
@pytest.mark.parametrize("warm", [pytest.param(False, marks=pytest.mark.soak), True])
def test_a_unet_that_is_compiled_afterwards_is_mitigated_or_refused(
    shallow: StableDiffusionPipeline, warm: bool
) -> None:
    unet, right = shallow.unet, mitigated(shallow)
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    if warm:  # its graph may be that of another test
        shallow.unet = compiled
        latents(shallow)
        shallow.unet = unet
    else:
        torch._dynamo.reset()
    with audit.mitigated(shallow, audit.Rescale(bos_scale=3)):
        shallow.unet = compiled
        try:
            found = latents(shallow)
        except AuditError as error:
            refusal = str(error)
        else:
            assert same(found, right)
            return
    assert "its denoiser was never seen" in refusal


def test_two_threads_share_a_unet(pipe: StableDiffusionPipeline) -> None:
    prompts, found = {SHORT: pipe, LONG: StableDiffusionPipeline.from_pipe(pipe)}, {}
    for pipeline in prompts.values():
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = copy.deepcopy(pipe.scheduler)
        # A fast tokenizer holds the padding of the call in progress: two threads cannot share one.
        pipeline.tokenizer = copy.deepcopy(pipe.tokenizer)
    right = {}
    for prompt, pipeline in prompts.items():
        with audit.mitigated(pipeline, audit.Rescale()):
            right[prompt] = latents(pipeline, prompt, num_inference_steps=5)

    def work(prompt: str) -> None:
        found[prompt] = latents(prompts[prompt], prompt, num_inference_steps=5)

    with audit.mitigated(prompts[SHORT], audit.Rescale()), audit.mitigated(prompts[LONG], audit.Rescale()):
        threads = [threading.Thread(target=work, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(same(found[prompt], right[prompt]) for prompt in prompts)


def test_instruct_pix2pix_is_refused_by_name(pipe: StableDiffusionPipeline) -> None:
    parts = pipe.components | {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
    unet = UNet2DConditionModel.from_config(dict(pipe.unet.config) | {"in_channels": 8})
    other = StableDiffusionInstructPix2PixPipeline(**parts | {"unet": unet}, requires_safety_checker=False)
    with pytest.raises(AuditError, match="StableDiffusionInstructPix2PixPipeline does not encode its prompts"):
        audit.mitigate_(other, audit.Rescale())
    assert type(other) is StableDiffusionInstructPix2PixPipeline
    assert type(unet) is UNet2DConditionModel
