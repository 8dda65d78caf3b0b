"""A mitigated call is what docs/explanation/mitigation.md defines, whatever the call: against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import SDCFGCutoffCallback
from torch import Tensor

import audit
from audit.errors import AuditError, UsageError
from tests.support.explicit import Defined

SHORT, LONG, NEGATIVE = (
    "a dog",
    "a serene beach at sunrise, 35mm, golden hour",
    "blurry and ugly and of low quality, text",
)
WINDOW = 77


@pytest.fixture
def pipe(float64: StableDiffusionPipeline) -> StableDiffusionPipeline:
    return float64


def latents(pipe: StableDiffusionPipeline, prompt: Any = None, images: int = 1, **more: Any) -> np.ndarray:
    noise = torch.randn(images, 4, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    call = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"} | more
    return pipe(prompt, latents=noise, **call).images.numpy()


def tokens(pipe: StableDiffusionPipeline, text: str) -> int:
    """BOS, words and EOS."""
    return len(pipe.tokenizer(text).input_ids)


def definition(rows: list[list[int]], bos_scale: float, guided: bool) -> Defined:
    """rows: of each image, how many positions of each window are visible."""
    visible = torch.tensor([[at < count for count in row for at in range(WINDOW)] for row in rows])
    scale = torch.tensor(
        [[bos_scale if at == 0 else 1.0 for _ in row for at in range(WINDOW)] for row in rows]
    ).double()
    if guided:
        visible, scale = torch.cat([visible, visible]), torch.cat([torch.ones_like(scale), scale])
    return Defined(visible, scale)


def check(pipe: StableDiffusionPipeline, ours: np.ndarray, defined: Defined, *args: Any, **more: Any) -> None:
    pipe.unet.set_attn_processor(defined)
    np.testing.assert_allclose(ours, latents(pipe, *args, **more), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("bos_scale", "guidance"),
    [
        (0.0, 5.0),
        (2.0, 1.0),
        *(pytest.param(*case, marks=pytest.mark.soak) for case in [(0.0, 1.0), (1.0, 5.0), (1.0, 1.0), (2.0, 5.0)]),
    ],
)
@pytest.mark.parametrize("keep", ["eos", "words", "all"])
def test_prompts_negative_prompts_and_several_images(
    pipe: StableDiffusionPipeline, keep: Any, bos_scale: float, guidance: float
) -> None:
    negatives = [NEGATIVE, ""] if guidance > 1 else None
    call = {"images": 4, "num_images_per_prompt": 2, "guidance_scale": guidance, "negative_prompt": negatives}
    with audit.mitigated(pipe, audit.Rescale(bos_scale=bos_scale, keep=keep)):
        ours = latents(pipe, [SHORT, LONG], **call)
    longest = [tokens(pipe, NEGATIVE if guidance > 1 else SHORT), tokens(pipe, LONG)]
    visible = {"eos": longest, "words": [count - 1 for count in longest], "all": [WINDOW] * 2}[keep]
    rows = [[count] for count in visible for _ in range(2)]
    check(pipe, ours, definition(rows, bos_scale, guidance > 1), [SHORT, LONG], **call)


@pytest.mark.parametrize("keep", ["eos", "words"])
def test_a_negative_prompt_as_embeddings_is_that_prompt_in_words(pipe: StableDiffusionPipeline, keep: Any) -> None:
    embeds = pipe.encode_prompt(NEGATIVE, "cpu", 1, False)[0]
    with audit.mitigated(pipe, audit.Rescale(keep=keep)):
        words = latents(pipe, SHORT, negative_prompt=NEGATIVE)
        with pytest.raises(UsageError, match="negative_prompt_tokens="):
            latents(pipe, SHORT, negative_prompt_embeds=embeds)
    with audit.mitigated(pipe, audit.Rescale(keep=keep), negative_prompt_tokens=tokens(pipe, NEGATIVE)):
        np.testing.assert_allclose(latents(pipe, SHORT, negative_prompt_embeds=embeds), words, atol=1e-12, rtol=0)
    with audit.mitigated(pipe, audit.Rescale(keep="all")):
        latents(pipe, SHORT, negative_prompt_embeds=embeds)


def test_the_empty_prompt_as_negative_embeddings_needs_no_number(pipe: StableDiffusionPipeline) -> None:
    empty = pipe.encode_prompt("", "cpu", 1, False)[0]
    with audit.mitigated(pipe, audit.Rescale()):
        np.testing.assert_allclose(
            latents(pipe, SHORT, negative_prompt_embeds=empty), latents(pipe, SHORT), atol=1e-12, rtol=0
        )


def in_windows(pipe: StableDiffusionPipeline, *texts: str) -> Tensor:
    return torch.cat([pipe.encode_prompt(text, "cpu", 1, False)[0] for text in texts], dim=1)


@pytest.mark.parametrize("keep", ["eos", "words", "all"])
def test_each_window_of_a_long_prompt_has_a_bos_and_padding_of_its_own(
    pipe: StableDiffusionPipeline, keep: Any
) -> None:
    call = {"prompt_embeds": in_windows(pipe, LONG, SHORT), "negative_prompt_embeds": in_windows(pipe, "", "")}
    counts = [tokens(pipe, LONG), tokens(pipe, SHORT)]
    with audit.mitigated(pipe, audit.Rescale(bos_scale=2, keep=keep), prompt_tokens=[counts]):
        ours = latents(pipe, **call)
    visible = {"eos": counts, "words": [count - 1 for count in counts], "all": [WINDOW] * 2}[keep]
    check(pipe, ours, definition([visible], 2, True), **call)


def test_numbers_that_do_not_fit_the_windows_are_refused(pipe: StableDiffusionPipeline) -> None:
    call = {"prompt_embeds": in_windows(pipe, LONG, SHORT), "negative_prompt_embeds": in_windows(pipe, "", "")}
    for given in (12, [12], [[12]], [[12, 78]], [[12, 1]], [[12, 4], [12, 4]]):
        with (
            audit.mitigated(pipe, audit.Rescale(), prompt_tokens=given),
            pytest.raises(UsageError, match="154 positions in 2 windows"),
        ):
            latents(pipe, **call)
    odd = {name: embeds[:, :100] for name, embeds in call.items()}
    with (
        audit.mitigated(pipe, audit.Rescale(keep="all")),
        pytest.raises(UsageError, match="100 positions, which are not whole windows"),
    ):
        latents(pipe, **odd)


def test_guidance_that_a_callback_switches_off_leaves_the_conditional_rows(pipe: StableDiffusionPipeline) -> None:
    call = {"num_inference_steps": 4, "callback_on_step_end": SDCFGCutoffCallback(cutoff_step_ratio=0.4)}
    with audit.mitigated(pipe, audit.Rescale(bos_scale=2)):
        ours = latents(pipe, SHORT, **call)
    check(pipe, ours, definition([[tokens(pipe, SHORT)]], 2, True), SHORT, **call)


def test_rows_that_are_no_guidance_branches_are_refused(pipe: StableDiffusionPipeline) -> None:
    def drop(_pipe: Any, _step: int, _t: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": tensors["prompt_embeds"][-1:]}  # guidance stays on

    more = {"callback_on_step_end": drop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with (
        audit.mitigated(pipe, audit.Rescale()),
        pytest.raises(AuditError, match="gets 1 rows .* 1 images, 2 guidance branches"),
    ):
        latents(pipe, SHORT, **more)
