"""A pipeline without a family is screened and run by its own call, and what it does not show is refused by name."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, PNDMScheduler
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_2d_rotary_pos_embed
from PIL import Image
from torch import Tensor

import audit
from audit.costs.flops import generation_cost, screen_cost
from audit.costs.meta_networks import outline_model
from audit.errors import AuditError, UsageError
from audit.explaining.caption import explain
from audit.explaining.layers import layers
from audit.models.loading import load_model
from audit.models.noise import initial_latent
from tests.support.checkpoints import set_config
from tests.support.families import Unrounded
from tests.support.tiny_others import SIZE, tiny_cogview4, tiny_hunyuan, tiny_zimage

CAPTIONS = ["a red dog on a table", "zebra", ""]
NOISE_DETECTORS = ["caption_response", "noise_alignment", "one_step_error", "step_change"]
FOLDERS = {"cogview4": tiny_cogview4, "hunyuan": tiny_hunyuan, "zimage": tiny_zimage}


@pytest.fixture(scope="module", params=FOLDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FOLDERS[name](tmp_path_factory.mktemp(name) / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> audit.Model:
    return load_model(folder, resolution=SIZE)


@pytest.fixture(scope="module")
def cogview4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cogview4(tmp_path_factory.mktemp("own") / "model")


@pytest.fixture(scope="module")
def loaded(cogview4: Path) -> audit.Model:
    """CogView4, for tests that are refused and so change nothing."""
    return load_model(cogview4, resolution=SIZE)


@pytest.fixture
def folder_of_sd(data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data / "toy-model", tmp_path / "model"))


def cogview4_forward(pipeline: Any, caption: str, latents_1CHW: Tensor, timestep: float) -> Tensor:
    hidden_1KD, _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
    size_12 = torch.tensor([[SIZE, SIZE]], dtype=torch.float64)
    output: Tensor = pipeline.transformer(
        hidden_states=latents_1CHW,
        encoder_hidden_states=hidden_1KD,
        timestep=torch.tensor([timestep]),
        original_size=size_12,
        target_size=size_12,
        crop_coords=torch.zeros_like(size_12),
    ).sample
    return output


def hunyuan_forward(pipeline: Any, caption: str, latents_1CHW: Tensor, timestep: float) -> Tensor:
    bert, t5 = (
        pipeline.encode_prompt(
            caption,
            torch.device("cpu"),
            torch.float64,
            do_classifier_free_guidance=False,
            max_sequence_length=length,
            text_encoder_index=number,
        )
        for number, length in enumerate((77, 256))
    )
    patches = SIZE // 8 // 2
    # The patches of any square image lie on the grid of an image of 512 pixels, which has 32 x 32 patches.
    rotary = get_2d_rotary_pos_embed(8, ((0, 0), (32, 32)), (patches, patches), output_type="pt")
    output: Tensor = pipeline.transformer(
        latents_1CHW,
        torch.tensor([float(timestep)], dtype=torch.float64),
        encoder_hidden_states=bert[0],
        text_embedding_mask=bert[2],
        encoder_hidden_states_t5=t5[0],
        text_embedding_mask_t5=t5[2],
        image_meta_size=torch.tensor([[1024, 1024, SIZE, SIZE, 0, 0]], dtype=torch.float64),
        style=torch.tensor([0]),
        image_rotary_emb=rotary,
    ).sample
    return output.chunk(2, dim=1)[0]


def zimage_forward(pipeline: Any, caption: str, latents_1CHW: Tensor, timestep: float) -> Tensor:
    (text_KD,), _ = pipeline.encode_prompt(caption, do_classifier_free_guidance=False)
    time = (1000 - torch.tensor([timestep])) / 1000
    (output_C1HW,) = pipeline.transformer(list(latents_1CHW.unsqueeze(2)), time, [text_KD]).sample
    return -output_C1HW.squeeze(1)[None]


FORWARDS = {
    "cogview4": cogview4_forward,
    "hunyuan": hunyuan_forward,
    "zimage": zimage_forward,
}
IN_FLOAT32 = {"zimage"}  # whose pipeline keeps latents in float32


def test_the_response_is_that_of_two_plain_forwards_of_the_network(name: str, folder: Path) -> None:
    model = load_model(folder, dtype=torch.float64, resolution=SIZE)
    schedule, pipeline, forward = model.screen_schedule(), model.pipeline(), FORWARDS[name]
    conditioning, null = model.encode(CAPTIONS[:1]), model.null()
    for position in (0, 24, 42):
        given = schedule.noisy(initial_latent(0, model.latent_shape)[None].double(), position)
        timestep = schedule.timesteps[position]
        with torch.inference_mode(), Unrounded():
            own, without = (model.predict(given, timestep, each) for each in (conditioning, null))
            plain = [forward(pipeline, caption, given, timestep) for caption in (CAPTIONS[0], "")]
        expected = schedule.response(plain[0], plain[1], position)
        assert expected.norm() > 1e-4
        response, error = schedule.response(own, without, position), 1e-6 if name in IN_FLOAT32 else 1e-9
        torch.testing.assert_close(response, expected, atol=error, rtol=0, check_dtype=False)


def test_a_screen_looks_at_the_noise_levels_of_stable_diffusion(model: audit.Model) -> None:
    alphas = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    schedule = model.screen_schedule()
    for position in range(50):
        assert schedule.alpha(position) == pytest.approx(float(alphas[981 - 20 * position]), rel=0.03)


def test_images_are_those_of_the_pipelines_own_call(model: audit.Model, folder: Path) -> None:
    table = audit.generate(model, CAPTIONS[:2], [3, 4], 3, 5.0, ["update_norm_profile"])
    assert table["status"].to_pylist() == ["ok"] * 4
    pipeline = model.pipeline()
    binned = "use_resolution_binning" in signature(pipeline.__call__).parameters
    fixed = {"use_resolution_binning": False} if binned else {}
    for row in table.to_pylist():
        generator = torch.Generator("cpu").manual_seed(row["seed"])  # draws the latents, then the noise of the steps
        called = pipeline(
            row["caption"],
            height=SIZE,
            width=SIZE,
            num_inference_steps=3,
            guidance_scale=5.0,
            generator=generator,
            output_type="np",
            **fixed,
        )
        own = np.asarray(Image.open(io.BytesIO(row["image"]))) / 255
        np.testing.assert_allclose(own, called.images[0], atol=0.51 / 255)


def test_scores_do_not_depend_on_batch_or_order(model: audit.Model) -> None:
    captions = ["a red dog on a table", ""]
    one = audit.screen(model, captions, [0, 1], NOISE_DETECTORS, batch_size=1)
    turned = audit.screen(model, captions[::-1], [1, 0], NOISE_DETECTORS, batch_size=3)
    assert one["status"].to_pylist() == ["ok"] * 4
    assert one.equals(turned.take([3, 2, 1, 0]))


def test_the_empty_prompt_has_no_response(model: audit.Model) -> None:
    table = audit.screen(model, [""], detectors=["noise_magnitude"])
    assert table["noise_magnitude"].to_pylist() == [0.0]


@pytest.mark.slow
def test_a_plan_counts_the_forwards_of_a_call(cogview4: Path) -> None:
    outline = outline_model(cogview4, resolution=SIZE)
    screen = screen_cost(outline, ["caption_response"])
    generation = generation_cost(outline, 5.0, ["update_norm_profile"])
    assert screen.row == screen.unconditional > 0
    assert generation.step == 2 * screen.row
    assert generation.size == (SIZE, SIZE)


@pytest.mark.parametrize(
    ("work", "what"),
    [
        (
            lambda model: audit.screen(model, ["a"], detectors=["attention_profile"]),
            "attention_profile reads attention",
        ),
        (lambda model: audit.screen(model, ["a"], detectors=["condition_difference"]), "mixtures of prompt embeddings"),
        (lambda model: audit.generate(model, ["a"], detectors=["bright_ending"]), "bright_ending reads attention"),
        (lambda model: audit.generate(model, ["a"], detectors=["score_difference"]), "the response in each step"),
        (lambda model: explain(model, "a"), "an explanation reads attention"),
        (lambda model: layers(model, ["a"], ["dog"]), "a ranking of layers reads attention"),
    ],
)
def test_what_reads_attention_is_refused(loaded: audit.Model, work: Callable[[Any], object], what: str) -> None:
    with pytest.raises(AuditError, match=f"{what}.*CogView4Pipeline"):
        work(loaded)


def test_mitigation_and_additions_to_the_weights_are_refused(
    cogview4: Path, loaded: audit.Model, tmp_path: Path
) -> None:
    with (
        pytest.raises(AuditError, match="CogView4Pipeline has CogView4Transformer2DModel"),
        audit.mitigated(loaded.pipeline()),
    ):
        pass
    for addition in ({"lora": tmp_path}, {"textual_inversion": [tmp_path]}):
        with pytest.raises(AuditError, match="CogView4Pipeline models are not supported with"):
            load_model(cogview4, resolution=SIZE, **addition)


def test_a_size_that_the_pipeline_refuses_is_an_error(cogview4: Path) -> None:
    with pytest.raises(UsageError, match="CogView4Pipeline: .*divisible by"):
        load_model(cogview4, resolution=SIZE + 8)
    model = load_model(cogview4, resolution=SIZE)
    assert model.at_resolution((SIZE, 2 * SIZE)).latent_shape == (4, 8, 16)
    with pytest.raises(UsageError, match="CogView4Pipeline: .*divisible by") as caught:
        model.at_resolution(SIZE + 8)
    assert caught.value.where == "screen.resolution"


@pytest.mark.parametrize(
    ("file", "change", "what"),
    [
        (
            "model_index.json",
            {"controlnet": ["diffusers", "ControlNetModel"]},
            "has a part that is not known: controlnet",
        ),
        ("model_index.json", {"text_encoder": ["modeling", "Encoder"]}, "text_encoder is modeling.Encoder"),
        ("model_index.json", {"text_encoder": ["transformers", "GlmConfig"]}, "text_encoder is transformers.GlmConfig"),
        ("model_index.json", {"vae": [None, None]}, "has no vae"),
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "invert_sigmas True"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "EDM"),
    ],
)
def test_what_is_not_known_is_refused_by_name(
    cogview4: Path, tmp_path: Path, file: str, change: dict[str, Any], what: str
) -> None:
    folder = Path(shutil.copytree(cogview4, tmp_path / "model"))
    set_config(folder / file, **change)
    for load in (load_model, outline_model):
        with pytest.raises(AuditError, match=what):
            load(folder)


def test_a_scheduler_of_more_steps_than_asked_for_is_refused(tmp_path: Path) -> None:
    folder = tiny_hunyuan(tmp_path / "model")
    PNDMScheduler(skip_prk_steps=True).save_pretrained(folder / "scheduler")
    with pytest.raises(AuditError, match="PNDMScheduler, which takes more than one step"):
        load_model(folder)


def test_packed_latents_are_refused(tmp_path: Path, cogview4: Path) -> None:
    from tests.support.tiny_mmdit import tiny_t5_tokenizer

    hunyuan = load_model(tiny_hunyuan(tmp_path / "hunyuan"), resolution=SIZE)
    network = ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    scheduler = load_model(cogview4, resolution=SIZE).pipeline().scheduler
    scheduler.register_to_config(use_dynamic_shifting=False)
    encoder = hunyuan.networks["text_encoder_2"]
    chroma = ChromaPipeline(scheduler, hunyuan.vae, encoder, tiny_t5_tokenizer(), network)
    chroma.save_pretrained(tmp_path / "chroma")
    with pytest.raises(AuditError, match=r"ChromaPipeline has latents of the shape \[1, 16, 16\]"):
        load_model(tmp_path / "chroma", resolution=SIZE)


def test_guidance_that_cannot_be_turned_off_is_refused(folder_of_sd: Path) -> None:
    """Perturbed-attention guidance is on in `StableDiffusionPAGPipeline`, whatever the guidance scale."""
    set_config(folder_of_sd / "model_index.json", _class_name="StableDiffusionPAGPipeline")
    with pytest.raises(AuditError, match="runs its unet 1 times on 2 rows for one caption without guidance"):
        audit.screen(load_model(folder_of_sd), ["a"])
