"""Textual inversions are loaded, and prompts with them expanded, exactly as diffusers does."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

import audit
from audit.errors import AuditError, UsageError
from audit.mitigation.serving import serve
from audit.models.noise import initial_latents
from audit.models.textual_inversion import TextualInversion

WIDTH = 32
CAPTIONS = [
    "a photo of <sks> on a table",
    "<sks>, <sks> and a dog",
    "<One> in the style of <sks>",
    "a dog",
    "",
    "<sks>_1 alone",
    "word " * 70 + "<sks>",
]


def vectors(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """An embedding of four vectors as diffusers writes it, and one of one vector as A1111 does."""
    save_file({"<sks>": vectors(4)}, tmp_path / "sks.safetensors")
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(vectors(1, 2))}}
    torch.save(content | {"name": "<One>", "step": 9, "sd_checkpoint": None}, tmp_path / "one.pt")
    return [tmp_path / "sks.safetensors", tmp_path / "one.pt"]


@pytest.fixture
def theirs(files: list[Path], loaded: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """Load both files with diffusers."""
    pipeline = copy.deepcopy(loaded)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    for file in files:
        pipeline.load_textual_inversion(str(file))
    return pipeline


def theirs_hidden(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    with torch.inference_mode():
        return pipeline.encode_prompt(CAPTIONS, "cpu", 1, False)[0]


def test_hidden_states_are_those_of_diffusers(files: list[Path], data: Path, theirs: StableDiffusionPipeline) -> None:
    model = audit.load_model(data / "toy-model", textual_inversion=files)
    encoded = model.encode(CAPTIONS)
    hidden_BKD, tokens = encoded.tensors["encoder_hidden_states"], encoded.tokens.counts_B.tolist()
    assert torch.equal(hidden_BKD, theirs_hidden(theirs))
    assert tokens[0] - model.encode(["a photo of dog on a table"]).tokens.counts_B[0] == 3
    assert set(model.weights_sha256) >= {"textual_inversion"}


def test_a_pipeline_saved_with_embeddings_is_expanded_too(
    data: Path, tmp_path: Path, theirs: StableDiffusionPipeline
) -> None:
    theirs.save_pretrained(tmp_path / "saved")
    model = audit.load_model(tmp_path / "saved")
    assert torch.equal(model.encode(CAPTIONS).tensors["encoder_hidden_states"], theirs_hidden(theirs))


def test_generate_serve_and_screen_expand_alike(files: list[Path], data: Path, theirs: StableDiffusionPipeline) -> None:
    model = audit.load_model(data / "toy-model", textual_inversion=files)
    ours = audit.generate(model, CAPTIONS[:3], seeds=[3], steps=3, guidance_scale=4, output="latents")
    noise = initial_latents([3], model.latent_shape, model.device).expand(3, -1, -1, -1)
    wanted = theirs(CAPTIONS[:3], latents=noise, num_inference_steps=3, guidance_scale=4.0, output_type="latent").images
    np.testing.assert_allclose(ours["latents"].to_pylist(), wanted.flatten(1).numpy(), atol=1e-5)
    images = audit.generate(model, CAPTIONS[:1], seeds=[3], steps=3, guidance_scale=7.5)["image"]
    assert serve(model, CAPTIONS[:1], seeds=[3], steps=3)["image"].equals(images)
    table = audit.screen(model, CAPTIONS[:1], detectors=["noise_magnitude"])
    with torch.inference_mode():
        hidden, t = theirs.encode_prompt(CAPTIONS[:1], "cpu", 1, True)[:2], 981
        start = initial_latents([0], model.latent_shape, model.device)
        with_text, without = (theirs.unet(start, t, encoder_hidden_states=each).sample for each in hidden)
    assert table["noise_magnitude"][0].as_py() == pytest.approx(float((with_text - without).norm()), rel=1e-5)


def test_a_token_may_be_given_and_has_to_be_where_the_file_has_none(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "style.safetensors"
    save_file({"emb_params": vectors(2)}, file)
    with pytest.raises(AuditError, match="does not name its token.*(?s:.)*model.textual_inversion"):
        audit.load_model(data / "toy-model", textual_inversion=[file])
    model = audit.load_model(data / "toy-model", textual_inversion=[TextualInversion(file, "<style>")])
    assert {"<style>", "<style>_1"} <= set(model.tokenizer.added_tokens_encoder)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"<x>": torch.zeros(2, 5)}, r"shape \[2, 5\]; the text encoder has 32"),
        ({"<x>": torch.full((1, WIDTH), float("nan"))}, "NaN or infinite"),
        ({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(2, 1280)}, "for Stable Diffusion XL"),
        ({"<x>": torch.zeros(1, WIDTH), "<y>": torch.zeros(1, WIDTH)}, "this is not a textual inversion"),
        ({"a</w>": torch.zeros(1, WIDTH)}, "already in tokenizer vocabulary"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(data: Path, tmp_path: Path, content: dict[str, Any], what: str) -> None:
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(AuditError, match=what):
        audit.load_model(data / "toy-model", textual_inversion=[tmp_path / "x.safetensors"])


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must not run",)


def test_a_pickle_with_code_in_it_is_refused_and_does_not_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"<x>": Code()}, tmp_path / "x.pt")
    with pytest.raises(AuditError, match="does not load.*(?s:.)*safetensors"):
        audit.load_model(data / "toy-model", textual_inversion=[tmp_path / "x.pt"])
    assert "must not run" not in capsys.readouterr().out
    with pytest.raises(UsageError, match="no such file"):
        audit.load_model(data / "toy-model", textual_inversion=[tmp_path / "y.pt"])


def test_a_token_inside_another_one_is_refused_as_its_expansion_is_not_defined(data: Path, tmp_path: Path) -> None:
    for token in ("sks", "sksdog"):
        save_file({token: vectors(2)}, tmp_path / f"{token}.safetensors")
    files = [tmp_path / f"{token}.safetensors" for token in ("sks", "sksdog")]
    with pytest.raises(AuditError, match="'sks' stands for several vectors and is part of another token"):
        audit.load_model(data / "toy-model", textual_inversion=files)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(
    data: Path, tmp_path: Path, theirs: StableDiffusionPipeline
) -> None:
    theirs.save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "saved/text_encoder")
    shutil.copytree(data / "toy-model/text_encoder", tmp_path / "saved/text_encoder")
    with pytest.raises(AuditError, match="the tokenizer has the token '<one>' of id 2018, and the text encoder 2014"):
        audit.load_model(tmp_path / "saved")
