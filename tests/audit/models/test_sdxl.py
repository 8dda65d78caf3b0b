"""Stable Diffusion XL runs as its own pipeline does, and what differs from Stable Diffusion is honoured."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

import audit
from audit.costs.flops import screen_cost
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError
from audit.models.noise import initial_latents
from tests.support.checkpoints import set_config
from tests.support.families import Conformance, Predictions
from tests.support.paths import TOKENIZER
from tests.support.tiny_xl import tiny_xl

PROMPT = "a red dog"


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_xl(tmp_path_factory.mktemp("xl") / "model", TOKENIZER)


@pytest.fixture(scope="module")
def model(xl: Path) -> audit.Model:
    return audit.load_model(xl)


class TestStableDiffusionXL(Conformance):
    make = staticmethod(partial(tiny_xl, tokenizer=TOKENIZER))


class TestWithAnEncodedEmptyPrompt(Predictions):
    make = staticmethod(partial(tiny_xl, tokenizer=TOKENIZER, force_zeros_for_empty_prompt=False))


def test_the_unconditional_branch_is_zeros_so_the_empty_prompt_has_a_response(model: audit.Model) -> None:
    null = model.null()
    assert not null.tensors["encoder_hidden_states"].any()
    assert not null.tensors["text_embeds"].any()
    table = audit.screen(model, [""], detectors=["noise_magnitude"])
    assert table["noise_magnitude"][0].as_py() > 0


def test_the_setting_of_the_unconditional_branch_is_part_of_what_scores_depend_on(model: audit.Model) -> None:
    assert model.fingerprint["force_zeros_for_empty_prompt"] == "True"
    assert b"force_zeros_for_empty_prompt" in audit.screen(model, []).schema.metadata[b"crossaudit"]


def test_the_network_is_told_the_resolution_of_the_screen(model: audit.Model) -> None:
    sizes = model.at_resolution((32, 64)).encode([PROMPT]).tensors["time_ids"]
    assert sizes.tolist() == [[32, 64, 0, 0, 32, 64]]


def test_a_variant_in_half_precision_decodes_in_float32(tmp_path: Path) -> None:
    folder = tiny_xl(tmp_path / "model", TOKENIZER, variant="fp16")
    model = audit.load_model(folder, dtype=torch.float16)
    latents = initial_latents([0], model.latent_shape, model.device)
    with torch.inference_mode():
        half, full = model.decode(latents), audit.load_model(folder).decode(latents)
    assert torch.equal(half, full)
    assert model.vae.dtype == torch.float16


def test_a_folder_of_fp16_shards_is_the_pipelines_model_and_is_read_whole(data: Path, tmp_path: Path) -> None:
    folder = tiny_xl(tmp_path / "model", data / "tiny-sd1/tokenizer", variant="fp16", max_shard_size="100KB")
    assert len(list((folder / "unet").glob("*.fp16-*.safetensors"))) > 1
    file = min((folder / "text_encoder_2").glob("*.safetensors"))  # older versions of transformers saved this buffer
    save_file(load_file(file) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, file)
    model = audit.load_model(folder)
    assert model.about["files_not_read"] == []
    theirs = StableDiffusionXLPipeline.from_pretrained(folder, variant="fp16")
    for name, network in model.networks.items():
        expected = getattr(theirs, name).state_dict()
        assert all(torch.equal(tensor, expected[key].float()) for key, tensor in network.state_dict().items()), name
    assert audit.screen(model, [PROMPT])["status"].to_pylist() == ["ok"]


def test_the_plan_counts_both_text_encoders(xl: Path, model: audit.Model) -> None:
    cost = screen_cost(outline_model(xl), ["caption_response"])
    assert cost.forwards == 1
    encoders = (model.text_encoder, model.text_encoder_2)
    weights = sum(
        each.numel()
        for encoder in encoders
        for name, each in encoder.named_parameters()
        if ".layers." in name and each.ndim == 2
    )
    assert 2 * 77 * weights < cost.text < 2 * 2 * 77 * weights


@pytest.mark.parametrize("method", [audit.Dilute(1.0), audit.Attenuate(alpha=1.0), audit.Rescale(1.0, keep="all")])
def test_a_method_without_effect_changes_nothing(model: audit.Model, method: object) -> None:
    pipeline, noise = model.pipeline(), initial_latents([0], model.latent_shape, model.device)

    def latents() -> torch.Tensor:
        found: torch.Tensor = pipeline(PROMPT, latents=noise, num_inference_steps=2, output_type="latent").images
        return found

    plain = latents()
    with audit.mitigated(pipeline, method):  # type: ignore[arg-type]
        torch.testing.assert_close(latents(), plain, atol=1e-5, rtol=0)
    assert torch.equal(latents(), plain)


def test_hidden_padding_leaves_the_network_bos_and_the_words(model: audit.Model) -> None:
    pipeline, noise = model.pipeline(), initial_latents([0], model.latent_shape, model.device)
    seen = []
    handle = model.unet.register_forward_pre_hook(
        lambda _unet, _args, given: seen.append(given["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    with audit.mitigated(pipeline, audit.Rescale(1.0, keep="words")):
        pipeline(PROMPT, latents=noise, num_inference_steps=1, output_type="latent")
    handle.remove()
    assert seen == [1 + len(model.words(PROMPT))]


def test_delayed_guidance_halves_the_sizes_and_the_pooled_vector_too(model: audit.Model) -> None:
    pipeline, noise = model.pipeline(), initial_latents([0], model.latent_shape, model.device)
    rows = []
    handle = model.unet.register_forward_pre_hook(
        lambda _unet, _args, given: rows.append([len(part) for part in given["added_cond_kwargs"].values()]),
        with_kwargs=True,
    )
    with audit.mitigated(pipeline, audit.DelayedGuidance(until=0.5)):
        pipeline(PROMPT, latents=noise, num_inference_steps=2, output_type="latent")
    handle.remove()
    assert rows == [[1, 1], [2, 2]]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"cross_attention_dim": 48}, "attends to hidden states of 48 values; the text encoder makes 64"),
        ({"projection_class_embeddings_input_dim": 72}, "takes 72 values of sizes and pooled text"),
        ({"addition_embed_type": None}, "addition embeddings"),
        ({"_class_name": "UNetMotionModel"}, "unet is UNetMotionModel"),
    ],
)
def test_another_architecture_is_refused_before_weights_are_read(
    xl: Path, tmp_path: Path, change: dict[str, object], what: str
) -> None:
    folder = Path(shutil.copytree(xl, tmp_path / "model"))
    set_config(folder / "unet/config.json", **change)
    for load in (audit.load_model, outline_model):
        with pytest.raises(AuditError, match=what):
            load(folder)


def test_lora_of_every_network_is_added(xl: Path, model: audit.Model, tmp_path: Path) -> None:
    layers = {
        "unet": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
        "text_encoder": "text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder_2": "text_model.encoder.layers.1.self_attn.v_proj",
    }
    factors, expected = {}, {}
    for name, layer in layers.items():
        network = getattr(model, name)
        known = {key.replace("text_model.", ""): value for key, value in network.state_dict().items()}
        weight = known[f"{layer.replace('text_model.', '')}.weight"]
        up, down = torch.randn(weight.shape[0], 2), torch.randn(2, weight.shape[1])
        factors |= {f"{name}.{layer}.lora_A.weight": down, f"{name}.{layer}.lora_B.weight": up}
        expected[name, layer] = weight + up @ down
    save_file(factors, tmp_path / "lora.safetensors")
    adapted = audit.load_model(xl, lora=tmp_path / "lora.safetensors")
    for (name, layer), weight in expected.items():
        found = {key.replace("text_model.", ""): value for key, value in getattr(adapted, name).state_dict().items()}
        torch.testing.assert_close(found[f"{layer.replace('text_model.', '')}.weight"], weight)
