from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

import audit
from audit.errors import AuditError


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """A copy of tiny-sd1 that a test may damage."""
    return Path(shutil.copytree(data / "tiny-sd1", tmp_path / "model"))


def set_config(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_folder_loads_in_float32_and_eval_without_gradients(tiny: audit.Model) -> None:
    for module in (tiny.unet, tiny.text_encoder, tiny.vae):
        assert not module.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())
    assert tiny.latent_shape == (4, 16, 16)
    assert len(tiny.layers) == 16


def test_the_weights_are_named_by_the_sha256_of_their_file(sd1: audit.Model, data: Path) -> None:
    content = (data / "tiny-sd1/unet/diffusion_pytorch_model.safetensors").read_bytes()
    assert sd1.weights_sha256["unet"] == hashlib.sha256(content).hexdigest()
    assert set(sd1.weights_sha256) == {"unet", "text_encoder", "tokenizer", "vae"}


def test_other_weights_have_another_sha256(sd1: audit.Model, sd2: audit.Model) -> None:
    assert sd1.weights_sha256["unet"] != sd2.weights_sha256["unet"]
    assert sd1.weights_sha256["tokenizer"] == sd2.weights_sha256["tokenizer"]


def test_the_dtype_asked_for_is_that_of_the_model(data: Path) -> None:
    model = audit.load_model(data / "tiny-sd1", dtype=torch.float16)
    assert model.unet.dtype == model.text_encoder.dtype == model.vae.dtype == torch.float16


def test_captions_of_any_kind_are_encoded(sd1: audit.Model) -> None:
    captions = ["", "a dog", "🐕" * 40, "صورة كلب", "word " * 500, "\x00\n\t", "A" * 10_000]
    encoded = sd1.encode(captions)
    hidden_BKD, prompt_tokens = encoded.tensors["encoder_hidden_states"], encoded.tokens.counts_B.tolist()
    assert hidden_BKD.shape == (len(captions), 77, 32)
    assert hidden_BKD.isfinite().all()
    assert prompt_tokens[0] == 2
    assert prompt_tokens[4] == prompt_tokens[6] == 77
    assert all(2 <= count <= 77 for count in prompt_tokens)


def test_prompt_tokens_do_not_count_padding_that_is_the_eos_token(sd1: audit.Model) -> None:
    ids_BK = sd1.tokenize(["a dog"]).ids_BK
    eos = int((ids_BK[0] == sd1.tokenizer.eos_token_id).nonzero()[0])
    assert sd1.encode(["a dog"]).tokens.counts_B.tolist() == [eos + 1]


def test_hidden_states_are_those_of_diffusers(sd1: audit.Model, pipeline) -> None:  # type: ignore[no-untyped-def]
    theirs = pipeline.encode_prompt(["a dog", ""], "cpu", 1, False)[0]
    torch.testing.assert_close(sd1.encode(["a dog", ""]).tensors["encoder_hidden_states"], theirs, atol=1e-6, rtol=0)


def test_a_missing_path_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match="no such model") as caught:
        audit.load_model(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in str(caught.value)


def test_a_hub_id_without_the_hub_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(AuditError, match="nobody/nothing: no such folder, and not available from the hub"):
        audit.load_model("nobody/nothing")


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae", "tokenizer", "scheduler"])
def test_a_folder_without_a_component_is_an_error_that_names_it(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    with pytest.raises(AuditError, match=f"no {part}/ in this folder"):
        audit.load_model(folder)


@pytest.mark.parametrize(("part", "name"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_pickled_weights_are_refused(folder: Path, part: str, name: str) -> None:
    weights = folder / part / f"{name}.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(AuditError, match="is a pickle; refused") as caught:
        audit.load_model(folder)
    assert "Convert it" in str(caught.value)


def test_a_pickled_single_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(AuditError, match="must be .safetensors"):
        audit.load_model(tmp_path / "model.ckpt")


def test_damaged_weights_are_an_error_and_not_a_traceback(folder: Path) -> None:
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(AuditError, match="does not load"):
        audit.load_model(folder)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("unet/config.json", {"_class_name": "SD3Transformer2DModel"}),
        ("unet/config.json", {"num_class_embeds": 10}),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}),
    ],
)
def test_another_architecture_is_an_error_that_lists_the_supported_ones(folder: Path, file: str, change: dict) -> None:  # type: ignore[type-arg]
    set_config(folder / file, **change)
    with pytest.raises(AuditError, match="Supported: .* Stable Diffusion 1.x, 2.x"):
        audit.load_model(folder)


def test_a_transformer_pipeline_is_named_in_the_error(folder: Path) -> None:
    (folder / "unet").rename(folder / "transformer")
    set_config(folder / "model_index.json", _class_name="DiTPipeline")
    with pytest.raises(AuditError, match="no unet/.*DiTPipeline"):
        audit.load_model(folder)
