from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import audit
from audit.errors import AuditError, UsageError
from tests.support.sampler import encoded, sampled

PROMPT, COUNT, PAD_FROM = "a dog", 4, 4  # BOS, a, dog, EOS
STEPS, GUIDANCE = 3, 5.0
NEUTRAL = "the</w>"


def reference(pipe: Any, noise: Tensor, token: int | None, zero: list[int]) -> np.ndarray:
    def replace(ids: Tensor) -> Tensor:
        return ids if token is None else torch.cat([ids[:COUNT], torch.full_like(ids[COUNT:], token)])

    prompt = encoded(pipe, PROMPT, replace).clone()
    prompt[:, zero] = 0
    return sampled(pipe, prompt, noise, STEPS, GUIDANCE).numpy()


@pytest.mark.parametrize(
    ("token", "share", "zeroed", "zero_eos"),
    [(NEUTRAL, 0.0, 0, False), (NEUTRAL, 0.7, 51, True), (None, 0.0, 0, True), (None, 1.0, 73, False)],
)
def test_it_is_the_definition_in_float64(
    pipe: Any, latents: Any, noise: Tensor, token: str | None, share: float, zeroed: int, zero_eos: bool
) -> None:
    with audit.mitigated(pipe, audit.Padding(token, zero_eos, share)):
        ours = latents(pipe, PROMPT)
    zero = [3] * zero_eos + list(range(COUNT, COUNT + zeroed))
    id_ = None if token is None else pipe.tokenizer.get_vocab()[token]
    np.testing.assert_allclose(ours, reference(pipe, noise, id_, zero), atol=1e-9, rtol=0)


def test_embeddings_can_be_zeroed_but_have_no_padding_ids(pipe: Any, latents: Any, noise: Tensor) -> None:
    given = {"prompt_embeds": encoded(pipe, PROMPT), "negative_prompt_embeds": encoded(pipe, "")}
    with audit.mitigated(pipe, audit.Padding(None), prompt_tokens=COUNT):
        ours = latents(pipe, **given)
    np.testing.assert_allclose(ours, reference(pipe, noise, None, [3]), atol=1e-9, rtol=0)
    with audit.mitigated(pipe, audit.Padding(NEUTRAL), prompt_tokens=COUNT), pytest.raises(UsageError, match="prompt="):
        latents(pipe, **given)
    with audit.mitigated(pipe, audit.Padding(None)), pytest.raises(UsageError, match="prompt_tokens="):
        latents(pipe, **given)


def test_the_default_token_has_the_id_that_stable_diffusion_2_pads_with(pipe: Any) -> None:
    assert audit.Padding().token == "!"
    assert pipe.tokenizer.get_vocab().get("!", 0) == 0


def test_a_tokenizer_that_does_not_pad_with_eos_is_refused(pipe: Any) -> None:
    pipe.tokenizer = copy.deepcopy(pipe.tokenizer)
    pipe.tokenizer.pad_token = NEUTRAL
    with pytest.raises(AuditError, match="this method is for padding with EOS"):
        audit.mitigate_(pipe, audit.Padding())


@pytest.mark.parametrize("token", ["no such token", -1, 10**9])
def test_an_unknown_token_is_refused(pipe: Any, token: Any) -> None:
    with pytest.raises(UsageError, match="does not know the token"):
        audit.mitigate_(pipe, audit.Padding(token))


def test_a_share_must_be_a_fraction() -> None:
    with pytest.raises(UsageError, match="zero_share is 70"):
        audit.Padding(zero_share=70)
