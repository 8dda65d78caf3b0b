from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import audit
from audit import schema
from audit.detectors import SCREEN
from audit.errors import AuditError
from audit.models.noise import initial_latent
from audit.scoring.batching import Rows
from audit.scoring.screening import Unconditional
from tests.support.toy import MODEL

EVERYTHING = (
    "profile",
    "caption_response",
    "entropy_single_step",
    "noise_magnitude",
    "noise_alignment",
    "one_step_error",
    "attention_profile_early",
    "seed_agreement",
)
# Most of them, at four timesteps instead of ten.
MOST = ("attention_profile", *EVERYTHING[1:])
CAPTIONS = ["a dog", "", "a serene beach at sunrise, 35mm", "🐕 صورة", "a " * 75, "word " * 200]
POSITIONS = (0, 6, 12, 18, 24, 30, 36, 42)


def numbers(table: pa.Table) -> np.ndarray:
    """All feature values, a row each."""
    rows = table.select(schema.features_of(table.schema)).to_pylist()
    return np.array([np.hstack([np.ravel(value) for value in row.values()]) for row in rows])


def forwards_of(model: audit.Model, **call: Any) -> list[int]:
    """The batch sizes of the UNet's forwards in a screen."""
    sizes: list[int] = []
    handle = model.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    audit.screen(model, **call)
    handle.remove()
    return sizes


def test_one_row_per_caption_and_seed_caption_major(small: audit.Model) -> None:
    table = audit.screen(small, ["b", "a", "b"], seeds=[7, 3], detectors=EVERYTHING, resolution=16)
    assert table["caption"].to_pylist() == ["b", "b", "a", "a", "b", "b"]
    assert table["seed"].to_pylist() == [7, 3] * 3
    assert table["prompt_tokens"].to_pylist()[0] == int(small.tokenize(["b"]).counts_B)
    columns = ["layer_entropy", "layer_bos", "noise_response", *EVERYTHING[1:-2]]
    columns += ["early_entropy", "early_bos", "direction"]
    assert table.schema.equals(schema.scored(columns))
    assert table["status"].to_pylist() == ["ok"] * 6
    assert table["error"].null_count == 6
    assert np.array(table["layer_bos"].to_pylist()).shape == (6, 4)
    assert np.array(table["noise_response"].to_pylist()).shape == (6, 8)


def test_nothing_to_screen_gives_the_same_schema(small: audit.Model) -> None:
    table = audit.screen(small, [])
    assert table.num_rows == 0
    assert table.schema.equals(audit.screen(small, ["a dog"]).schema, check_metadata=True)


@pytest.fixture(scope="module")
def known() -> Unconditional:
    """Forwards without a caption, which are the same in every screen."""
    return {}


@pytest.fixture(scope="module")
def alone(small: audit.Model, known: Unconditional) -> dict[str, np.ndarray]:
    call: dict[str, Any] = {"detectors": EVERYTHING, "unconditional": known, "resolution": 16}
    return {caption: numbers(audit.screen(small, [caption], **call))[0] for caption in CAPTIONS}


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    captions=st.lists(st.sampled_from(CAPTIONS), min_size=1, max_size=4),
    batch_size=st.integers(1, 6),
)
def test_a_caption_scores_the_same_in_any_batch_and_order(
    small: audit.Model, known: Unconditional, alone: dict[str, np.ndarray], captions: list[str], batch_size: int
) -> None:
    call: dict[str, Any] = {"detectors": EVERYTHING, "batch_size": batch_size, "unconditional": known}
    found = numbers(audit.screen(small, captions, **call, resolution=16))
    # One step from pure noise divides by sqrt(alpha) = 0.07: that detector's values are in the hundreds.
    np.testing.assert_allclose(found, [alone[caption] for caption in captions], atol=2e-5, rtol=2e-6)


def test_seeds_do_not_touch_one_another(small: audit.Model) -> None:
    call: dict[str, Any] = {"detectors": MOST, "resolution": 16}
    together = numbers(audit.screen(small, CAPTIONS[:2], seeds=[0, 1, 2], batch_size=4, **call))
    apart = numbers(audit.screen(small, CAPTIONS[:2], seeds=[1], **call))
    np.testing.assert_allclose(together[1::3], apart, atol=2e-5, rtol=2e-6)
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_the_same_call_gives_the_same_bits(small: audit.Model) -> None:
    one, other = (audit.screen(small, CAPTIONS[:3], detectors=MOST) for _ in range(2))
    assert one.equals(other, check_metadata=True)


def test_all_detectors_come_out_of_one_pass(small: audit.Model) -> None:
    captions, seeds = ["a", "b", "c"], [0, 1]
    # The eight of `profile`, of which caption_response needs one, and that of noise_alignment.
    unconditional = [1] * 9 * len(seeds)
    conditional = [4] * 9 + [2] * 9  # six rows in batches of four
    sizes = forwards_of(small, captions=captions, seeds=seeds, detectors=EVERYTHING, batch_size=4, resolution=16)
    assert sizes == unconditional + conditional


def test_attention_alone_needs_no_unconditional_forward(small: audit.Model) -> None:
    assert forwards_of(small, captions=["a", "b"], detectors=["attention_profile"]) == [2]


def test_a_detector_of_early_layers_alone_ends_the_forward_there(small: audit.Model) -> None:
    ran: list[int] = []
    handles = [
        layer.to_k.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, layer in enumerate(small.layers)
    ]
    single = audit.screen(small, ["a dog"], detectors=["entropy_single_step"])
    assert ran == [0, 1, 2, 3]
    for handle in handles:
        handle.remove()
    both = audit.screen(small, ["a dog"], detectors=["entropy_single_step", "noise_magnitude"])
    assert single["entropy_single_step"] == both["entropy_single_step"]


@pytest.fixture(scope="module")
def response_in_float64(exact: StableDiffusionPipeline) -> Callable[[str], tuple[np.ndarray, np.ndarray]]:
    """`||eps(c) - eps(∅)||` and `||eps(∅)||` at the eight timesteps, a plain diffusers loop in float64, for seed 3."""
    scheduler = DDIMScheduler.from_config(exact.scheduler.config)
    scheduler.set_timesteps(50)
    noise = initial_latent(3, (4, 16, 16)).double()[None]

    @cache
    @torch.no_grad()
    def predicted(caption: str) -> list[torch.Tensor]:
        hidden = exact.encode_prompt(caption, "cpu", 1, False)[0]
        times = scheduler.timesteps[list(POSITIONS)]
        return [exact.unet(noise, timestep, encoder_hidden_states=hidden).sample for timestep in times]

    def norms(caption: str) -> tuple[np.ndarray, np.ndarray]:
        with_caption, without = predicted(caption), predicted("")
        responses = [float((one - other).norm()) for one, other in zip(with_caption, without, strict=True)]
        return np.array(responses), np.array([float(eps.norm()) for eps in without])

    return norms


def test_the_timesteps_of_the_noise_profile_are_those_of_the_design() -> None:
    scheduler = DDIMScheduler(steps_offset=1, timestep_spacing="leading")
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[list(POSITIONS)].tolist() == [981, 861, 741, 621, 501, 381, 261, 141]


def test_noise_magnitude_and_profile_are_a_plain_loop_in_float64(small: audit.Model, response_in_float64: Any) -> None:
    responses, magnitudes = response_in_float64("a dog")
    row = audit.screen(small, ["a dog"], seeds=[3], detectors=["noise_magnitude", "noise_profile"]).to_pylist()[0]
    assert row["noise_magnitude"] == pytest.approx(responses[0], abs=1e-5)
    np.testing.assert_allclose(row["noise_response"], np.log(np.maximum(responses, 1e-3 * magnitudes)), atol=1e-5)


def test_a_caption_of_the_empty_prompts_tokens_does_nothing_to_the_noise(
    small: audit.Model, response_in_float64: Any
) -> None:
    captions = ["", "   ", "<|endoftext|>"]  # the last: EOS before the padding, which is EOS
    table = audit.screen(small, captions, seeds=[3], detectors=["noise_magnitude", "noise_profile"], batch_size=2)
    assert table["noise_magnitude"].to_pylist() == [0.0] * 3
    _, magnitudes = response_in_float64("")
    for values in table["noise_response"].to_pylist():
        np.testing.assert_allclose(values, np.log(1e-3 * magnitudes), atol=1e-5)


def test_a_caption_counts_as_empty_by_its_token_ids_not_by_their_number(small: audit.Model) -> None:
    captions = ["<|endoftext|>", "a dog", "", "<|endoftext|> a", " \n"]
    batch = Rows(small, captions, [0], None).batch(slice(0, len(captions)))
    assert batch.same_as_empty_B.tolist() == [True, False, True, False, True]
    assert batch.prompt_tokens_B.tolist()[:3:2] == [3, 2]


def test_v_prediction_is_converted_to_epsilon(
    small: audit.Model, exact: StableDiffusionPipeline, response_in_float64: Any
) -> None:
    """With eps = sqrt(alpha) v + sqrt(1 - alpha) x, two eps differ by sqrt(alpha) times the difference of their v."""
    model = replace(small, scheduler_config={**small.scheduler_config, "prediction_type": "v_prediction"})
    responses, _ = response_in_float64("a dog")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = float((1 - betas).cumprod(0)[981])
    table = audit.screen(model, ["a dog", ""], seeds=[3], detectors=["noise_magnitude", "noise_profile"])
    assert table["noise_magnitude"][0].as_py() == pytest.approx(alpha**0.5 * responses[0], rel=1e-5)

    noise = initial_latent(3, (4, 16, 16)).double()[None]
    hidden = exact.encode_prompt("", "cpu", 1, False)[0]
    with torch.no_grad():
        v_unconditional = exact.unet(noise, 981, encoder_hidden_states=hidden).sample
    eps_unconditional = alpha**0.5 * v_unconditional + (1 - alpha) ** 0.5 * noise
    floor = np.log(1e-3 * float(eps_unconditional.norm()))
    assert table["noise_response"][1].as_py()[0] == pytest.approx(floor, abs=1e-5)


def test_an_unknown_prediction_type_is_an_error(small: audit.Model) -> None:
    model = replace(small, scheduler_config={**small.scheduler_config, "prediction_type": "sample"})
    with pytest.raises(AuditError, match="prediction_type is 'sample'"):
        audit.screen(model, ["a dog"])


@pytest.fixture
def poisoned() -> audit.Model:
    """A copy of `small` whose output is NaN for captions that contain "zebra"."""
    model = audit.load_model(MODEL)
    ids = [set(model.tokenizer(text).input_ids) for text in ("zebra", "a dog", "a serene beach at sunrise")]
    (token, *_) = ids[0] - ids[1] - ids[2]
    model.text_encoder.get_input_embeddings().weight[token] = torch.nan
    return model


def test_a_row_that_is_not_finite_is_an_error_and_the_others_are_not(poisoned: audit.Model, small: audit.Model) -> None:
    captions = ["a dog", "zebra", "a serene beach at sunrise"]
    table = audit.screen(poisoned, captions, detectors=MOST, batch_size=3)
    assert table["status"].to_pylist() == ["ok", "error", "ok"]
    assert table["error"].to_pylist()[1] == "not finite: hidden states of the text encoder, t = 981"
    bad = table.to_pylist()[1]
    assert all(bad[name] is None for name in schema.features_of(table.schema))
    good = table.take([0, 2])
    np.testing.assert_allclose(
        numbers(good), numbers(audit.screen(small, [captions[0], captions[2]], detectors=MOST)), atol=2e-5
    )
    for name in schema.features_of(table.schema):
        kept = table[name].combine_chunks()
        flat = kept.values if pa.types.is_list(kept.type) else kept.drop_null()
        assert np.isfinite(flat.to_numpy()).all()


def test_a_detector_that_fails_leaves_the_columns_of_the_others(
    small: audit.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the detector's own arithmetic overflows: all forwards are finite."""
    odd = {"one_step_error": lambda seen: {"one_step_error": seen.noise_BCHW.new_tensor([1.0, torch.inf]).double()}}
    monkeypatch.setitem(SCREEN, "one_step_error", replace(SCREEN["one_step_error"], measure=odd["one_step_error"]))
    detectors = ["noise_magnitude", "one_step_error"]
    table = audit.screen(small, ["a dog", "a cat"], detectors=detectors, batch_size=2)
    assert table["status"].to_pylist() == ["ok", "error"]
    assert table["error"].to_pylist() == [None, "not finite: one_step_error"]
    assert table["one_step_error"].to_pylist() == [1.0, None]
    plain = audit.screen(small, ["a dog", "a cat"], detectors=["noise_magnitude"], batch_size=2)
    assert table["noise_magnitude"].equals(plain["noise_magnitude"])


@pytest.mark.parametrize("layer", [0, pytest.param(1, marks=pytest.mark.soak), 3])
def test_a_broken_layer_is_named_with_its_timestep(layer: int) -> None:
    model = audit.load_model(MODEL)
    model.layers[layer].to_k.weight[0, 0] = torch.inf
    (row,) = audit.screen(model, ["a dog"], detectors=["attention_profile"]).to_pylist()
    assert row["status"] == "error"
    assert row["error"] == f"not finite: cross-attention layer {layer}, t = 621"
    (row,) = audit.generate(model, ["a dog"], steps=4, output="latents").to_pylist()
    assert row["error"] == f"not finite: cross-attention layer {layer}, step 1 of 4 (t = 751)"


def test_a_checkpoint_that_is_broken_after_its_last_layer_is_named_too() -> None:
    model = audit.load_model(MODEL)
    model.unet.conv_out.bias[0] = torch.nan
    (row,) = audit.screen(model, ["a dog"], detectors=["noise_magnitude"]).to_pylist()
    assert row["error"] == "not finite: output of the unet, t = 981"


def test_the_metadata_says_what_the_numbers_depend_on(small: audit.Model) -> None:
    context = json.loads(audit.screen(small, ["a dog"], seeds=[4, 5]).schema.metadata[b"crossaudit"])
    assert context["weights"] == {name: small.weights_sha256[name] for name in ("unet", "text_encoder", "tokenizer")}
    assert context["dtype"] == "float32"
    assert context["seeds"] == [4, 5]
    assert context["latent_shape"] == [4, 16, 16]
    assert context["scheduler"]["prediction_type"] == "epsilon"
    assert context["detectors"] == {"caption_response": 1}
    context = json.loads(audit.screen(small, [], detectors=["profile"]).schema.metadata[b"crossaudit"])
    assert context["detectors"] == {"attention_profile": 1, "noise_profile": 1}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"detectors": ["entropy_trajectory"]}, "'entropy_trajectory' belongs to audit.generate"),
        ({"detectors": ["nonsense"]}, "unknown detector 'nonsense'"),
        ({"detectors": "profile"}, "detectors is the string 'profile'"),
        ({"captions": "a dog"}, "captions is one string"),
        ({"captions": ["a dog", None]}, "caption 1 is None"),
        ({"captions": ["\ud800"]}, "caption 0 is not valid Unicode"),
        ({"seeds": []}, "seeds is"),
        ({"seeds": [1, 1]}, "seeds is"),
        ({"seeds": [-1]}, "seeds is"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"resolution": 26}, "the resolution is 26 x 26(?s:.)*a multiple of 4 pixels"),
        ({"resolution": (16, 10)}, "the resolution is 16 x 10"),
    ],
)
def test_wrong_use_is_an_error_that_says_what(small: audit.Model, call: dict[str, Any], message: str) -> None:
    with pytest.raises(AuditError, match=message):
        audit.screen(small, **({"captions": ["a dog"]} | call))


def test_a_screen_at_a_resolution_is_that_of_a_model_loaded_at_it(small: audit.Model) -> None:
    call: dict[str, Any] = {"captions": CAPTIONS[:2], "seeds": [0, 5], "detectors": MOST}
    there = audit.screen(audit.load_model(MODEL, resolution=(16, 32)), **call)
    assert audit.screen(small, **call, resolution=(16, 32)).equals(there, check_metadata=True)
    assert json.loads(there.schema.metadata[b"crossaudit"])["latent_shape"] == [4, 8, 16]
    assert small.latent_shape == (4, 16, 16)


def test_forwards_without_a_caption_are_kept_for_later_calls(small: audit.Model) -> None:
    call: dict[str, Any] = {"seeds": [0, 5], "detectors": ["noise_magnitude", "noise_alignment"]}
    plain = audit.screen(small, ["a cat"], **call)
    known: Unconditional = {}
    assert forwards_of(small, captions=["a dog"], unconditional=known, **call) == [1, 1, 1, 1, 2, 2]
    assert forwards_of(small, captions=["a dog"], unconditional=known, **call) == [2, 2]
    assert audit.screen(small, ["a cat"], unconditional=known, **call).equals(plain)
    assert audit.screen(small, ["a cat"], unconditional=known, **call | {"seeds": [5, 0]}).num_rows == 2
    halved = audit.screen(small, ["a cat"], unconditional=known, resolution=16, **call)
    assert halved.equals(audit.screen(small, ["a cat"], resolution=16, **call))


def test_the_models_own_resolution_is_the_default(small: audit.Model) -> None:
    plain = audit.screen(small, CAPTIONS[:2])
    assert audit.screen(small, CAPTIONS[:2], resolution=32).equals(plain, check_metadata=True)
    assert not audit.screen(small, CAPTIONS[:2], resolution=16)["caption_response"].equals(plain["caption_response"])


@pytest.mark.parametrize("name", [pytest.param("tiny-sd1", marks=pytest.mark.soak), "tiny-sd2"])
def test_bfloat16_is_within_a_stated_bound_of_float32(data: Path, name: str) -> None:
    """Absolute bounds: nats, probabilities, logarithms; and two per cent of a norm or of an error."""
    exact, narrow = (
        audit.screen(audit.load_model(data / name, dtype=dtype), CAPTIONS[2:3], [0], EVERYTHING[:-2], resolution=16)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert narrow["status"].to_pylist() == ["ok"]
    for column, absolute, relative in (
        ("layer_entropy", 0.1, 0),
        ("entropy_single_step", 0.1, 0),
        ("layer_bos", 0.01, 0),
        ("noise_response", 0.03, 0),
        ("caption_response", 0.03, 0),
        ("noise_alignment", 0.01, 0),
        ("noise_magnitude", 0, 0.02),
        ("one_step_error", 0, 0.02),
    ):
        found, expected = (np.array(table[column].to_pylist()) for table in (narrow, exact))
        np.testing.assert_allclose(found, expected, atol=absolute, rtol=relative, err_msg=column)
    assert json.loads(narrow.schema.metadata[b"crossaudit"])["dtype"] == "bfloat16"
