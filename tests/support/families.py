"""Check that a family runs its networks as the family's own pipeline in diffusers does, in float64 (docs/how-to)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import audit
from audit.models.noise import initial_latent
from audit.models.schedule import guide

CAPTIONS = ["a red dog on a table", "zebra", ""]
STEPS, GUIDANCE = 3, 5.0


class Predictions:
    """Tests of what a family predicts. A subclass has a static method `make`, which saves a tiny random folder."""

    make: Callable[[Path], Path]
    RESOLUTION: int | tuple[int, int] | None = None

    @pytest.fixture(scope="class")
    def float64(self, tmp_path_factory: pytest.TempPathFactory) -> audit.Model:
        """The model of the folder, in float64."""
        folder = self.make(tmp_path_factory.mktemp("family") / "model")
        return audit.load_model(folder, dtype=torch.float64, resolution=self.RESOLUTION)

    def latents(self, model: Any, caption: str, noise_1CHW: Tensor) -> Tensor:
        """Return the final latents [1, C, H, W] of the family's own pipeline."""
        latents: Tensor = model.pipeline()(
            caption,
            latents=noise_1CHW,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            output_type="latent",
        ).images
        return latents

    def test_latents_are_those_of_the_pipeline(self, float64: Any) -> None:
        noise_1CHW = initial_latent(0, float64.latent_shape)[None].double()
        own_1CHW, conditioning, null = noise_1CHW, float64.encode(CAPTIONS[:1]), float64.null()
        schedule = float64.schedule(STEPS)
        conditioning = float64.with_guidance(conditioning, GUIDANCE)
        with torch.inference_mode():
            for step, timestep in enumerate(schedule.timesteps):
                output = predict(float64, own_1CHW, timestep, conditioning)
                if float64.GUIDED:
                    output = guide(predict(float64, own_1CHW, timestep, null), output, GUIDANCE)
                own_1CHW = schedule.step(output, step, own_1CHW)
            theirs_1CHW = self.latents(float64, CAPTIONS[0], noise_1CHW)
        torch.testing.assert_close(own_1CHW, theirs_1CHW, atol=1e-6, rtol=0)

    def test_the_response_is_that_of_two_plain_forwards(self, float64: Any) -> None:
        schedule, conditioning, null = float64.screen_schedule(), float64.encode(CAPTIONS[:1]), float64.null()
        for position in (0, 24, 42):
            noise = initial_latent(0, float64.latent_shape)[None].double()
            given, timestep = schedule.noisy(noise, position), schedule.timesteps[position]
            with torch.inference_mode():
                own, without = (predict(float64, given, timestep, each) for each in (conditioning, null))
            expected = schedule.to_epsilon(own, given, position) - schedule.to_epsilon(without, given, position)
            torch.testing.assert_close(schedule.response(own, without, position), expected, atol=1e-9, rtol=0)

    def test_a_screen_looks_at_the_noise_levels_of_stable_diffusion(self, float64: Any) -> None:
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        alphas = (1 - betas).cumprod(0)
        schedule = float64.screen_schedule()
        for position in range(50):
            alpha = float(alphas[981 - 20 * position])
            assert schedule.alpha(position) == pytest.approx(alpha, rel=0.02)


class Conformance(Predictions):
    """Tests of a family: also of its attention, its words, and the scores and images that come of all this."""

    def test_attention_is_that_of_an_independent_computation(self, float64: Any) -> None:
        conditioning = float64.encode(CAPTIONS)
        noise = initial_latent(0, float64.latent_shape)[None].double().expand(len(CAPTIONS), -1, -1, -1)
        timestep = float64.screen_schedule().timesteps[18]
        with torch.inference_mode(), float64.probe(conditioning) as probe:
            float64.predict(noise, timestep, conditioning)
            found_BLK = probe.take()
            with Attended(float64.layers) as attended:
                float64.predict(noise, timestep, conditioning)
        expected_BLK = torch.stack([self.canonical(float64, conditioning, each) for each in attended.seen], dim=1)
        torch.testing.assert_close(found_BLK.double(), expected_BLK, atol=1e-6, rtol=0)
        torch.testing.assert_close(found_BLK.sum(-1), torch.ones_like(found_BLK[..., 0]))

    def canonical(self, model: Any, conditioning: Any, attn_BHQK: Tensor) -> Tensor:
        """Average attention over heads and image queries, in the canonical layout: [B, K]."""
        places, tokens = model.places, conditioning.tokens
        rows = []
        for row, all_K in enumerate(attn_BHQK[:, :, places.queries].mean((1, 2))):
            text_K = all_K[places.keys]
            if tokens.order_BK is not None:
                text_K = torch.stack([text_K[at] for at in tokens.order_BK[row].tolist()])
            rows.append(torch.cat([(1 - text_K[1:].sum())[None], text_K[1:]]))
        return torch.stack(rows)

    def test_every_word_has_a_position_of_its_own(self, float64: Any) -> None:
        counts = [2 + len(float64.word_texts(caption)) for caption in CAPTIONS]
        assert float64.tokenize(CAPTIONS).counts_B.tolist() == counts

    def test_scores_do_not_depend_on_batch_or_order(self, float64: Any) -> None:
        names = ["caption_response", "attention_profile", "condition_difference", "step_change"]
        captions = ["a red dog on a table", ""]
        one = audit.screen(float64, captions, [0, 1], names, batch_size=3)  # the last batch has one row
        turned = audit.screen(float64, captions[::-1], [1, 0], names, batch_size=2).take([3, 2, 1, 0])
        assert one["status"].to_pylist() == turned["status"].to_pylist() == ["ok"] * 4
        for name in one.column_names:
            for own, other in zip(one[name].to_pylist(), turned[name].to_pylist(), strict=True):
                assert own == (other if isinstance(own, str | None) else pytest.approx(other, rel=1e-4, abs=1e-6)), name

    def test_a_run_makes_images_and_follows_every_detector(self, float64: Any) -> None:
        names = ["entropy_trajectory", "trajectory_profile", "update_norm_profile", "score_difference", "bright_ending"]
        table = audit.generate(float64, CAPTIONS[:2], steps=2, detectors=names)
        assert table["status"].to_pylist() == ["ok", "ok"]
        assert all(table["image"].to_pylist())


def predict(model: Any, latents_BCHW: Tensor, timestep: float, conditioning: Any) -> Tensor:
    """Run the denoiser as `Model.predict` does, without rounding the output to float32."""
    with Unrounded():
        output: Tensor = model.predict(latents_BCHW, timestep, conditioning)
    return output


class Unrounded(torch.overrides.TorchFunctionMode):
    """Inside the `with` block, `Tensor.float` changes no latents; networks may use it on anything else."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is Tensor.float and args[0].ndim == 4 else func(*args, **(kwargs or {}))


class Attended(torch.overrides.TorchFunctionMode):
    """Computes the attention of the given layers by hand, in float64, from each call of the fused kernel."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self._running: list[Any] = []
        self._handles = [layer.register_forward_pre_hook(self._begin) for layer in layers]
        self._handles += [layer.register_forward_hook(self._end) for layer in layers]

    def _begin(self, layer: Any, _args: Any) -> None:
        self._running.append(layer)

    def _end(self, _layer: Any, _args: Any, _output: Any) -> None:
        self._running.pop()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention and self._running:
            query, key = args[:2] if len(args) > 1 else (kwargs["query"], kwargs["key"])
            mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
            logits = query.double() @ key.double().transpose(-1, -2) / query.shape[-1] ** 0.5
            if mask is not None:
                logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
            self.seen.append(logits.softmax(-1))
        return func(*args, **kwargs)
