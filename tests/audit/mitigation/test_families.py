"""Mitigation of transformers is what docs/explanation/mitigation.md defines: against float64, on tiny random models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import audit
from audit.errors import AuditError, UsageError
from audit.mitigation.pipeline_calls import Mitigation
from audit.models.conditioning import Conditioning
from audit.models.noise import initial_latent
from audit.models.pixart import PixArtSigma
from audit.models.sana import Sana
from audit.models.schedule import guide
from audit.models.sd3 import StableDiffusion3
from tests.support.changed_attention import ChangedAttention
from tests.support.families import Unrounded, predict
from tests.support.paths import DATA
from tests.support.tiny_mmdit import tiny_flux, tiny_sd3
from tests.support.tiny_pixart import tiny_pixart
from tests.support.tiny_sana import tiny_sana
from tests.support.tiny_xl import tiny_xl

SHORT, LONG = "a red dog", "a red dog on a table, a zebra"
STEPS, GUIDANCE = 2, 5.0
HIDDEN, MASK, POOLED = "encoder_hidden_states", "encoder_attention_mask", "pooled_projections"
TOKENIZER = DATA / "tiny-sd1/tokenizer"
MAKE: dict[str, Callable[[Path], Path]] = {
    "pixart": tiny_pixart,
    "sana": tiny_sana,
    "sd3": partial(tiny_sd3, tokenizer=TOKENIZER),
    "sd3 with QK norm": partial(tiny_sd3, tokenizer=TOKENIZER, qk_norm="rms_norm", dual_attention_layers=(0,)),
    "sd3 without T5": partial(tiny_sd3, tokenizer=TOKENIZER, t5=False),
    "sd3 of one layer": partial(tiny_sd3, tokenizer=TOKENIZER, t5=False, num_layers=1),
    "flux": partial(tiny_flux, tokenizer=TOKENIZER),
}
FAMILIES = ("pixart", "sana", "sd3", "flux")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    loaded: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            folder = MAKE[name](tmp_path_factory.mktemp("tiny") / "model")
            loaded[name] = audit.load_model(folder, dtype=torch.float64, resolution=32 if name == "sana" else 16)
        return loaded[name]

    return load


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, models: Callable[[str], Any]) -> Any:
    return models(request.param)


@pytest.fixture(scope="module")
def plain() -> Callable[[Any], Tensor]:
    """A function: what a model's pipeline makes of SHORT and LONG."""
    found: dict[int, Tensor] = {}

    def of(model: Any) -> Tensor:
        if id(model) not in found:
            found[id(model)] = latents(model, model.pipeline(), SHORT, LONG)
        return found[id(model)]

    return of


def latents(model: Any, pipeline: Any, *captions: str, guidance: float = GUIDANCE, **more: Any) -> Tensor:
    noise_BCHW = initial_latent(0, model.latent_shape).double().expand(len(captions), -1, -1, -1)
    with Unrounded():  # the pipeline of SANA rounds outputs to float32
        found: Tensor = model.call_pipeline(partial(pipeline, **more), captions, noise_BCHW, STEPS, guidance)
    return found


@torch.inference_mode()
def sampled(model: Any, conditioning: Conditioning) -> Tensor:
    """Sample one image with the model's own loop."""
    x, null, schedule = initial_latent(0, model.latent_shape)[None].double(), model.null(), model.schedule(STEPS)
    conditioning = model.with_guidance(conditioning, GUIDANCE)
    for step, timestep in enumerate(schedule.timesteps):
        output = predict(model, x, timestep, conditioning)
        if model.GUIDED:
            output = guide(predict(model, x, timestep, null), output, GUIDANCE)
        x = schedule.step(output, step, x)
    return x


def close(found: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def attends_across(model: Any) -> bool:
    """Tell whether a model has cross-attention, whose padding its pipeline hides."""
    return isinstance(model, PixArtSigma | Sana)


@contextmanager
def flagging(pipeline: Any, method: Any, flagged: set[str], **more: Any) -> Iterator[None]:
    """Mitigate prompts that are flagged before the call, as a calibration would."""
    mitigation = Mitigation(pipeline, method, None, None, lambda given: [prompt in flagged for prompt in given], **more)
    mitigation.install(pipeline)
    yield
    mitigation.remove(pipeline)


@pytest.mark.parametrize("name", [*FAMILIES, "sd3 without T5"])
def test_dilution_mixes_the_embeddings_with_those_of_the_empty_prompt(models: Any, name: str) -> None:
    model, share = models(name), 0.4
    pipeline, given, null = model.pipeline(), model.encode([SHORT]), model.encode([""])
    own, empty = given.tensors[HIDDEN], null.tensors[HIDDEN]
    if attends_across(model):
        last = int(null.tensors[MASK].sum()) - 1  # the position behind which all are hidden
        empty = empty[:, torch.arange(empty.shape[1]).clamp(max=last)]
    with audit.mitigated(pipeline, audit.Dilute(share)):
        ours = latents(model, pipeline, SHORT)
    expected = Conditioning(given.tensors | {HIDDEN: share * own + (1 - share) * empty})
    close(ours, sampled(model, expected), atol=1e-6)


def test_a_share_of_nothing_is_the_empty_prompt(models: Any) -> None:
    model = models("pixart")
    pipeline = model.pipeline()
    with audit.mitigated(pipeline, audit.Dilute(0.0)):
        ours = latents(model, pipeline, LONG)
    close(ours, latents(model, pipeline, ""))


def defined(
    model: Any, pipeline: Any, keep: str, bos_scale: float, captions: tuple[str, ...], negative: str
) -> ChangedAttention:
    """Return what makes a plain call of the pipeline the mitigated one."""
    mask_BK = (model.tokenize(captions).mask_BK | model.tokenize([negative]).mask_BK).bool()
    if keep == "all":
        mask_BK = torch.ones_like(mask_BK)
    elif keep == "words":  # not the last of each run of tokens, which is END
        mask_BK &= torch.cat([mask_BK[:, 1:], torch.zeros_like(mask_BK[:, :1])], dim=1)
    visible_BK = mask_BK.repeat(1 + model.GUIDED, 1)
    scale_BK = torch.ones_like(visible_BK, dtype=torch.float64)
    scale_BK[-len(captions) :, 0] = bos_scale
    blocks, count = pipeline.transformer.transformer_blocks, mask_BK.shape[1]
    layers = [block.attn2 if attends_across(model) else block.attn for block in blocks]
    layers += [block.attn for block in getattr(pipeline.transformer, "single_transformer_blocks", [])]
    keys = slice(-count, None) if isinstance(model, StableDiffusion3) else slice(0, count)
    return ChangedAttention(layers, keys, visible_BK, scale_BK)


def check_rescale(model: Any, keep: Any, captions: tuple[str, ...]) -> None:
    """Check `Rescale` of a guided call with a negative prompt, or of FLUX, which has none."""
    pipeline, bos_scale = model.pipeline(), 3.0 if isinstance(model, StableDiffusion3 | Sana) else 1.0
    negative = "on a table" if model.GUIDED else ""
    more = {"negative_prompt": [negative] * len(captions)} if model.GUIDED else {}
    with audit.mitigated(pipeline, audit.Rescale(bos_scale, keep)):
        ours = latents(model, pipeline, *captions, **more)
    with defined(model, pipeline, keep, bos_scale, captions, negative) as changed:
        close(ours, latents(model, pipeline, *captions, **more))
    assert changed.calls > 0
    assert not torch.allclose(ours, latents(model, pipeline, *captions, **more), atol=1e-6)


@pytest.mark.parametrize(
    ("name", "keep"),
    [
        ("sd3", "eos"),
        *((name, "words") for name in ("sd3", "sd3 without T5", "sd3 with QK norm", "flux")),
        *(pytest.param(name, "eos", marks=pytest.mark.soak) for name in ("sd3 without T5", "flux")),
        ("pixart", "words"),  # its pipeline hides padding
        ("sana", "all"),  # so does this one, and there is no END
    ],
)
@pytest.mark.parametrize(
    "captions",
    [pytest.param((SHORT,), id="one", marks=pytest.mark.soak), pytest.param((SHORT, LONG), id="two")],
)
def test_masked_keys_and_a_scaled_bos_are_the_definition(
    models: Callable[[str], Any], name: str, keep: str, captions: tuple[str, ...]
) -> None:
    check_rescale(models(name), keep, captions)


@pytest.mark.parametrize("name", ["pixart", "sd3", "flux"])
def test_fused_projections_are_mitigated_too(models: Any, name: str) -> None:
    model = copy.deepcopy(models(name))
    model.transformer.fuse_qkv_projections()
    check_rescale(model, "words", (SHORT, LONG))


@pytest.fixture(params=["dilute", "rescale"])
def method(request: pytest.FixtureRequest, model: Any) -> Any:
    if request.param == "dilute":
        return audit.Dilute(0.4)
    return audit.Rescale(3.0, "all") if isinstance(model, Sana) else audit.Rescale(1.0, "words")


def test_each_image_is_mitigated_as_if_it_were_alone_and_those_that_are_not_flagged_not_at_all(
    model: Any, method: Any, plain: Callable[[Any], Tensor]
) -> None:
    pipeline = model.pipeline()
    with audit.mitigated(pipeline, method):
        together = latents(model, pipeline, SHORT, LONG)
        alone = torch.cat([latents(model, pipeline, caption) for caption in (SHORT, LONG)])
    close(together, alone)
    with flagging(pipeline, method, {LONG}):
        ours = latents(model, pipeline, SHORT, LONG)
    close(ours, torch.stack([plain(model)[0], alone[1]]))
    assert not torch.allclose(ours[1], plain(model)[1], atol=1e-6)
    with flagging(pipeline, method, set()):
        assert torch.equal(latents(model, pipeline, SHORT, LONG), plain(model))
    assert torch.equal(latents(model, pipeline, SHORT, LONG), plain(model))


@pytest.mark.parametrize("method", [audit.Rescale(1.0, "all"), audit.Dilute(1.0)], ids=str)
def test_what_changes_nothing_is_bitwise_the_plain_pipeline(
    model: Any, method: Any, plain: Callable[[Any], Tensor]
) -> None:
    pipeline = model.pipeline()
    with audit.mitigated(pipeline, method):
        assert torch.equal(latents(model, pipeline, SHORT, LONG), plain(model))


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_the_pooled_vector_of_the_empty_prompt_takes_the_place_of_the_prompts_own(
    models: Any, name: str, plain: Callable[[Any], Tensor]
) -> None:
    model = models(name)
    pipeline, given, empty = model.pipeline(), model.encode([SHORT]).tensors, model.encode([""]).tensors
    with audit.mitigated(pipeline, audit.Dilute(0.0)):
        own = latents(model, pipeline, SHORT)
    with audit.mitigated(pipeline, audit.Dilute(0.0), empty_pooled=True):
        ours = latents(model, pipeline, SHORT)
    close(own, sampled(model, Conditioning(given | {HIDDEN: empty[HIDDEN]})), atol=1e-6)
    close(ours, latents(model, pipeline, ""))
    assert not torch.allclose(own, ours, atol=1e-6)
    with flagging(pipeline, audit.Dilute(0.0), {LONG}, empty_pooled=True):
        some = latents(model, pipeline, SHORT, LONG)
    close(some, torch.stack([plain(model)[0], ours[0]]))


def test_the_pooled_vector_of_stable_diffusion_xl(tmp_path: Path) -> None:
    model = audit.load_model(tiny_xl(tmp_path / "model", TOKENIZER), dtype=torch.float64)
    pipeline = model.pipeline()
    with audit.mitigated(pipeline, audit.Dilute(0.0), empty_pooled=True):
        ours = latents(model, pipeline, SHORT)
    close(ours, latents(model, pipeline, ""))


@pytest.mark.parametrize("name", ["pixart", "sd1"])
def test_a_family_without_a_pooled_vector_cannot_replace_it(models: Any, sd1: audit.Model, name: str) -> None:
    pipeline = (sd1 if name == "sd1" else models(name)).pipeline()
    with pytest.raises(UsageError, match="the prompt enters this denoiser by no pooled vector"):
        audit.mitigate_(pipeline, empty_pooled=True)


def test_padding_of_stable_diffusion_3_is_that_of_clip(models: Any) -> None:
    model = models("sd3")
    pipeline, tokens = model.pipeline(), model.tokenize([SHORT])
    count = len(model.words(SHORT)) + 2
    neutral = model.tokenizer.get_vocab()["the</w>"]
    with audit.mitigated(pipeline, audit.Padding("the</w>")):
        ours = latents(model, pipeline, SHORT)
    ids = tokens.ids_BK.clone()
    for start in (0, 77):  # of both CLIP encoders
        ids[:, start + count : start + 77] = neutral
    given, changed = model.encode([SHORT]).tensors, model.embed(replace(tokens, ids_BK=ids)).tensors
    hidden = torch.cat([changed[HIDDEN][:, :77], given[HIDDEN][:, 77:]], dim=1)
    hidden[:, count - 1] = 0
    close(ours, sampled(model, Conditioning(given | {HIDDEN: hidden})), atol=1e-6)


@pytest.mark.parametrize("name", ["sd3", "sana"])
def test_guidance_can_be_weaker(models: Any, name: str) -> None:
    model = models(name)
    pipeline = model.pipeline()
    with audit.mitigated(pipeline, audit.WeakGuidance(2.0)):
        weak = latents(model, pipeline, SHORT)
    close(weak, latents(model, pipeline, SHORT, guidance=2.0))


@pytest.mark.parametrize("name", ["sd3", "sana"])
def test_guidance_can_begin_later(models: Any, name: str) -> None:
    model = models(name)
    pipeline, rows = model.pipeline(), []
    handle = pipeline.transformer.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    with audit.mitigated(pipeline, audit.DelayedGuidance(0.5)):
        later = latents(model, pipeline, SHORT)
    handle.remove()
    assert rows == [1, 2]
    assert not torch.allclose(later, latents(model, pipeline, SHORT), atol=1e-6)


def test_embeddings_of_stable_diffusion_3_have_two_windows(models: Any) -> None:
    model = models("sd3")
    pipeline, method = model.pipeline(), audit.Rescale(2.0, "words")
    with audit.mitigated(pipeline, method):
        right = latents(model, pipeline, SHORT)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    given = dict(zip(names, pipeline.encode_prompt(SHORT, None, None), strict=True))
    clip, t5 = model.tokenize([SHORT]).mask_BK[0].split([77, 256])

    def by_embeddings() -> Tensor:
        return latents(model, lambda _captions, **call: pipeline(**given, **call), SHORT)

    with audit.mitigated(pipeline, method, prompt_tokens=[[int(clip.sum()), int(t5.sum())]]):
        close(by_embeddings(), right)
    with audit.mitigated(pipeline, method, prompt_tokens=5), pytest.raises(UsageError, match="333 positions in 2 win"):
        by_embeddings()


def test_prompts_that_a_calibration_flags_are_mitigated(models: Any) -> None:
    model = models("sd3 without T5")
    control = [f"a {look} {thing}" for look in ("red", "old", "wet", "torn") for thing in "abcdefghijklmnopqrstuvwxyz"]
    screened = audit.screen(model, control, detectors=["noise_magnitude"], batch_size=104)
    calibration = audit.calibrate(screened, "noise_magnitude")
    pipeline = model.pipeline()
    unchanged, empty = latents(model, pipeline, SHORT), latents(model, pipeline, "")
    for max_p, expected in ((1.0, empty), (1e-9, unchanged)):
        with audit.mitigated(pipeline, audit.Dilute(0.0), only=calibration, max_p=max_p, empty_pooled=True):
            close(latents(model, pipeline, SHORT), expected)


@pytest.mark.parametrize(
    ("name", "method", "what"),
    [
        ("flux", audit.Rescale(1.25, "eos"), "does not put BOS first"),
        ("pixart", audit.Rescale(1.25, "words"), "does not put BOS first"),
        ("pixart", audit.Rescale(1.0, "eos"), "hides padding itself, so that keep=eos changes nothing"),
        ("sana", audit.Rescale(1.25, "eos"), "hides padding itself, so that keep=eos changes nothing"),
        ("sana", audit.Rescale(1.25, "words"), "puts no END behind the prompt"),
        ("pixart", audit.Padding(), "pads with '<pad>'"),
        ("sana", audit.Padding(), "pads with '<pad>'"),
        ("flux", audit.Padding(), "pads with '<pad>'"),
        ("sd3", audit.Attenuate(), "down and mid layers of a UNet, and the denoiser is SD3Transformer2DModel"),
        ("flux", audit.WeakGuidance(), "this pipeline has no unconditional branch"),
        ("flux", audit.DelayedGuidance(), "this pipeline has no unconditional branch"),
        ("pixart", audit.WeakGuidance(), "PixArtSigmaPipeline does not tell its num_timesteps and guidance_scale"),
    ],
    ids=str,
)
def test_what_has_no_meaning_is_refused_with_the_reason(models: Any, name: str, method: Any, what: str) -> None:
    with pytest.raises(AuditError, match=what):
        audit.mitigate_(models(name).pipeline(), method)


@pytest.mark.parametrize("name", ["sd3", "pixart"])
def test_bands_are_fitted_for_a_unet_alone(models: Any, name: str) -> None:
    with pytest.raises(AuditError, match="takes clean latents from a UNet's prediction"):
        audit.fit_run_bands(models(name), [SHORT])


def test_a_negative_prompt_of_flux_is_refused(models: Any) -> None:
    model = models("flux")
    pipeline = model.pipeline()
    with audit.mitigated(pipeline), pytest.raises(AuditError, match="the call encodes prompts twice"):
        latents(model, pipeline, SHORT, negative_prompt="blurry", true_cfg_scale=2.0)


def test_a_second_prompt_is_refused(models: Any) -> None:
    model = models("sd3")
    pipeline = model.pipeline()
    with audit.mitigated(pipeline), pytest.raises(UsageError, match="a text encoder a prompt_3 of its own"):
        latents(model, pipeline, SHORT, prompt_3="zebra")


@pytest.mark.slow
@pytest.mark.parametrize("warm", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_transformer_that_was_compiled_in_place_before(models: Any, warm: bool) -> None:
    model, method = models("sd3 of one layer"), audit.Rescale(3.0, "words")
    pipeline = model.pipeline()
    plain = latents(model, pipeline, SHORT, LONG)
    with audit.mitigated(pipeline, method):
        right = latents(model, pipeline, SHORT, LONG)
    torch._dynamo.reset()
    pipeline.transformer.compile(backend="eager")
    if warm:
        close(latents(model, pipeline, SHORT, LONG), plain, atol=1e-8)
    with audit.mitigated(pipeline, method):
        close(latents(model, pipeline, SHORT, LONG), right, atol=1e-8)
