"""What holds for every method: each image is mitigated as if it were alone, and only those that are to be."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import audit
from audit.errors import UsageError
from audit.mitigation.pipeline_calls import Mitigation

SHORT, LONG = "a dog", "a serene beach at sunrise, 35mm, golden hour"
METHODS = {
    "rescale": lambda _: audit.Rescale(3, "words"),
    "padding": lambda _: audit.Padding("the</w>", zero_share=0.5),
    "attenuate": lambda _: audit.Attenuate(tau=1.0),
    "stabilise": lambda bands: audit.Stabilise(bands, tail=0.2),
    "delayed_guidance": lambda _: audit.DelayedGuidance(0.5),
    "delayed_guidance, dynamic": lambda _: audit.DelayedGuidance(None),
    "dilute": lambda _: audit.Dilute(0.5),
    "weak_guidance": lambda _: audit.WeakGuidance(1.0),
}


# One that changes attention, embeddings, the guided prediction, and latents; the others do so in the same place.
ONE_OF_EACH_KIND = ("rescale", "padding", "delayed_guidance", "stabilise")
OF_EACH_KIND = [name if name in ONE_OF_EACH_KIND else pytest.param(name, marks=pytest.mark.soak) for name in METHODS]


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest, bands: audit.RunBands) -> Any:
    return METHODS[request.param](bands)


@pytest.fixture(params=OF_EACH_KIND)
def one_of_its_kind(request: pytest.FixtureRequest, bands: audit.RunBands) -> Any:
    return METHODS[request.param](bands)


@pytest.fixture(scope="module")
def plain(make_pipe: Callable[[], Any], latents: Any) -> np.ndarray:
    """The latents of SHORT and LONG, generated without mitigation."""
    found: np.ndarray = latents(make_pipe(), [SHORT, LONG], images=2)
    return found


@contextmanager
def flagging(pipe: Any, method: Any, flagged: set[str]) -> Iterator[None]:
    """Mitigate prompts that are flagged before the call, as a calibration would."""
    mitigation = Mitigation(pipe, method, None, None, lambda prompts: [prompt in flagged for prompt in prompts])
    mitigation.install(pipe)
    yield
    mitigation.remove(pipe)


def test_an_image_does_not_depend_on_the_others(pipe: Any, latents: Any, plain: np.ndarray, method: Any) -> None:
    negatives = ["blurry", ""]
    with audit.mitigated(pipe, method):
        call = {"num_images_per_prompt": 2, "negative_prompt": negatives}
        together = latents(pipe, [SHORT, LONG], images=4, **call)
        alone = [
            latents(pipe, prompt, negative_prompt=negative)[0]
            for prompt, negative in zip((SHORT, LONG), negatives, strict=True)
        ]
        short = latents(pipe, SHORT)
    np.testing.assert_allclose(together, np.repeat(alone, 2, axis=0), atol=1e-9, rtol=0)
    assert not np.allclose(short, plain[:1], atol=1e-3)


def test_only_the_flagged_prompts_change_and_without_any_a_batch_is_bitwise_plain(
    pipe: Any, latents: Any, plain: np.ndarray, method: Any
) -> None:
    with audit.mitigated(pipe, method):
        all_mitigated = latents(pipe, [SHORT, LONG], images=2)
    with flagging(pipe, method, {LONG}):
        ours = latents(pipe, [SHORT, LONG], images=2)
    np.testing.assert_allclose(ours, [plain[0], all_mitigated[1]], atol=1e-9, rtol=0)
    with flagging(pipe, method, set()):
        assert np.array_equal(latents(pipe, [SHORT, LONG], images=2), plain)


def test_the_users_callback_gets_what_it_asked_for_and_may_change_it(
    pipe: Any, latents: Any, one_of_its_kind: Any
) -> None:
    seen: list[set[str]] = []

    def callback(_pipe: Any, step: int, _t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(set(tensors))
        return {"prompt_embeds": tensors["prompt_embeds"] * 1.0}

    more = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    with audit.mitigated(pipe, one_of_its_kind):
        found = latents(pipe, SHORT, **more)
        np.testing.assert_allclose(found, latents(pipe, SHORT), atol=1e-9, rtol=0)
    assert seen == [{"prompt_embeds"}] * 3


def test_two_threads_mitigate_a_shared_unet_in_different_ways(
    double: audit.Model, latents: Any, one_of_its_kind: Any
) -> None:
    pipes, found, right = [double.pipeline(), double.pipeline()], {}, {}
    methods = [one_of_its_kind, audit.Rescale(2)]
    # A fast tokenizer holds the padding of the call in progress: two threads cannot share one.
    pipes[1].tokenizer = copy.deepcopy(pipes[1].tokenizer)
    for at in (0, 1):
        with audit.mitigated(pipes[at], methods[at]):
            right[at] = latents(pipes[at], LONG)
    with audit.mitigated(pipes[0], methods[0]), audit.mitigated(pipes[1], methods[1]):

        def work(at: int) -> None:
            found[at] = latents(pipes[at], LONG)

        threads = [threading.Thread(target=work, args=(at,)) for at in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for at in (0, 1):
        np.testing.assert_allclose(found[at], right[at], atol=1e-9, rtol=0)


@pytest.mark.parametrize("method", [audit.DelayedGuidance(), audit.WeakGuidance()], ids=str)
def test_a_method_that_changes_guidance_needs_some(pipe: Any, latents: Any, method: Any) -> None:
    with audit.mitigated(pipe, method), pytest.raises(UsageError, match=f"{method.name} needs guidance"):
        latents(pipe, SHORT, guidance_scale=1.0)


def test_what_is_no_method_is_refused(pipe: Any) -> None:
    with pytest.raises(UsageError, match="the method is 'padding'"):
        audit.mitigate_(pipe, "padding")  # type: ignore[arg-type]
