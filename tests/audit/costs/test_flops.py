"""FLOPs: by hand on a layer, against the code itself on the tiny model, and against what is published of SD 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import audit
from audit.costs.flops import count, embedding_cost, generation_cost, screen_cost
from audit.costs.meta_networks import META, outline_embedder, outline_model
from audit.defaults import DEFAULT_DETECTOR
from audit.embedding.loading import load_embedder
from tests.support.paths import BUNDLE
from tests.support.toy import MODEL

CAPTIONS = ["a red dog", "two ships at night"]
SEEDS = (0, 5)


@pytest.fixture(scope="module")
def outline() -> audit.Model:
    return outline_model(MODEL)


def counted(work: Callable[[], object]) -> int:
    """FLOPs of real work; torch counts no attention that is fused on the CPU."""
    with sdpa_kernel(SDPBackend.MATH):
        return count(work)


def test_a_multiply_add_is_two() -> None:
    convolution, linear = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, 5)
    image, row = torch.zeros(2, 3, 10, 10), torch.zeros(7, 8)
    by_hand = 2 * 2 * (3 * 3 * 3) * 8 * (5 * 5) + 2 * 7 * 8 * 5
    assert count(lambda: (convolution(image), linear(row))) == by_hand


def test_a_cross_attention_layer_by_hand() -> None:
    queries, keys, width, text = 64, 24, 32, 16
    with META:
        layer = Attention(query_dim=width, cross_attention_dim=text, heads=4, dim_head=width // 4)
    hidden, prompt = torch.empty(1, queries, width, device=META), torch.empty(1, keys, text, device=META)
    projections = 2 * (2 * queries * width * width) + 2 * (2 * keys * text * width)  # q and out, k and v
    products = 2 * (2 * queries * keys * width)  # q k and p v
    assert count(lambda: layer(hidden, prompt)) == projections + products


def test_the_unet_of_stable_diffusion_1_costs_what_is_published() -> None:
    """860 M parameters and 339 G multiply-adds without the products of attention (BK-SDM, arXiv 2305.15798)."""
    with META:
        unet = UNet2DConditionModel.from_config({"sample_size": 64, "cross_attention_dim": 768}).eval()
    latent, text = torch.empty(1, 4, 64, 64, device=META), torch.empty(1, 77, 768, device=META)
    flops = count(lambda: unet(latent, 981, encoder_hidden_states=text))
    products = sum(_products(module, 4096 >> 2 * level) for level, module in _attentions(unet))
    assert round(sum(parameter.numel() for parameter in unet.parameters()) / 1e6) == 860
    assert round((flops - products) / 2e9) == 339
    assert round(flops / 1e12, 2) == 0.80


def _attentions(unet: UNet2DConditionModel) -> list[tuple[int, Attention]]:
    """(how often its input was halved, layer) of every attention."""
    blocks = [*enumerate(unet.down_blocks), (3, unet.mid_block), *zip((3, 2, 1, 0), unet.up_blocks, strict=True)]
    return [(level, module) for level, block in blocks for module in block.modules() if isinstance(module, Attention)]


def _products(layer: Attention, queries: int) -> int:
    """FLOPs of q k and p v."""
    return 2 * 2 * queries * (77 if layer.is_cross_attention else queries) * layer.inner_dim


@pytest.mark.parametrize(
    "detectors",
    [
        pytest.param(("profile",), marks=pytest.mark.soak),
        ("entropy_single_step",),
        ("attention_profile", "noise_magnitude"),
        pytest.param(("seed_agreement",), marks=pytest.mark.soak),
        ("step_change", "condition_difference", "caption_response"),
    ],
)
def test_a_screen_does_what_its_cost_says(detectors: tuple[str, ...], small: audit.Model, outline: audit.Model) -> None:
    done = counted(lambda: audit.screen(small, CAPTIONS, SEEDS, detectors))
    cost = screen_cost(outline, detectors)
    texts = len(CAPTIONS) + (1 if cost.unconditional else 0)
    rows = len(CAPTIONS) * len(SEEDS) * cost.row
    assert done == texts * cost.text + rows + len(SEEDS) * (cost.shared + cost.unconditional)


def test_a_screen_has_as_many_values_as_its_cost_says(small: audit.Model, outline: audit.Model) -> None:
    detectors = ("profile", "seed_agreement", "noise_alignment")
    row = audit.screen(small, ["a"], (0,), detectors).to_pylist()[0]
    values = screen_cost(outline, detectors).values
    assert values == {name: len(row[name]) if isinstance(row[name], list) else 1 for name in values}
    assert {"layer_bos", "noise_response", "direction", "noise_alignment"} <= values.keys()


def test_the_default_detector_needs_one_forward_and_the_profile_eight(outline: audit.Model) -> None:
    one = screen_cost(outline, ["noise_magnitude"]).row
    assert screen_cost(outline, [DEFAULT_DETECTOR]).forwards == 1
    assert screen_cost(outline, [DEFAULT_DETECTOR]).row == one
    assert screen_cost(outline, ["profile"]).forwards == 8
    assert 8 * one <= screen_cost(outline, ["profile"]).row < 8.1 * one


def test_a_published_detector_needs_the_layers_to_the_fourth_of_sixteen(data: Path) -> None:
    model = outline_model(data / "tiny-sd1", resolution=16)
    early = screen_cost(model, ["entropy_single_step"])
    assert early.forwards == 1
    assert early.row < 0.4 * screen_cost(model, [DEFAULT_DETECTOR]).row
    assert early.unconditional == 0


def test_detectors_with_forwards_of_their_own_cost_what_they_say(outline: audit.Model) -> None:
    one = screen_cost(outline, ["noise_magnitude"])
    for detector in ("step_change", "condition_difference"):
        cost = screen_cost(outline, [detector])
        assert (cost.row, cost.forwards) == (2 * one.row + one.shared, 2)  # the second one shares nothing


@pytest.mark.parametrize(
    ("guidance", "detectors"),
    [
        (7.5, ()),
        (1.0, ("entropy_trajectory", "noise_magnitude_mean")),
        pytest.param(1.0, (), marks=pytest.mark.soak),
        pytest.param(7.5, ("entropy_trajectory", "noise_magnitude_mean"), marks=pytest.mark.soak),
    ],
)
def test_a_generation_does_what_its_cost_says(
    guidance: float, detectors: tuple[str, ...], small: audit.Model, outline: audit.Model
) -> None:
    done = counted(lambda: audit.generate(small, CAPTIONS, SEEDS, 2, guidance, detectors))
    cost = generation_cost(outline, guidance, detectors)
    empty = guidance > 1 or "noise_magnitude_mean" in detectors  # whether the empty prompt is needed
    assert done == (len(CAPTIONS) + empty) * cost.text + len(CAPTIONS) * len(SEEDS) * cost.of(2)
    assert cost.size == (32, 32)


def test_guidance_doubles_a_step(outline: audit.Model) -> None:
    assert generation_cost(outline, 7.5).step == 2 * generation_cost(outline, 1.0).step


def test_models_of_one_architecture_are_counted_once_and_others_are_not_confused(tmp_path: Path) -> None:
    copy, other = Path(shutil.copytree(MODEL, tmp_path / "copy")), outline_model(MODEL, resolution=64)
    cost = screen_cost(outline_model(MODEL), ["noise_magnitude"])
    assert screen_cost(outline_model(copy), ["noise_magnitude"]) is cost
    assert screen_cost(outline_model(copy), ["profile"]).row > cost.row
    assert screen_cost(other, ["noise_magnitude"]).row > 2 * cost.row
    configuration = json.loads((copy / "unet/config.json").read_text())
    (copy / "unet/config.json").write_text(json.dumps(configuration | {"layers_per_block": 2}))
    assert screen_cost(outline_model(copy), ["noise_magnitude"]).row > cost.row


def test_an_embedding_does_what_its_cost_says() -> None:
    weights = BUNDLE / "embedders/sscd.safetensors"
    outline, loaded = outline_embedder(weights), load_embedder("sscd", weights)
    inputs = [torch.zeros(outline.shape)] * 3
    assert counted(lambda: loaded.vectors(inputs)) == 3 * embedding_cost(outline)
