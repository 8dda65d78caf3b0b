"""Any other text-to-image pipeline of diffusers, audited by its predicted noise and run by its own call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Self

import diffusers
import torch
from torch import Tensor, nn

from audit.errors import AuditError, UsageError, first_line
from audit.models.architecture import checked_size
from audit.models.conditioning import Conditioning, Tokens
from audit.models.files import read_json
from audit.models.flow import LONGEST, FlowSchedule, screen_alphas, screen_flow
from audit.models.model import Model
from audit.models.own_pipeline import (
    Encoded,
    Ended,
    ending,
    fixed,
    held,
    latent_shape,
    observed,
    replaced,
    rows_given,
)
from audit.models.pipeline_parts import parts_of, unsupported
from audit.models.sampler import SCREEN_STEPS, NearestSchedule
from audit.models.schedulers import resolve
from audit.models.sd import ready
from audit.models.without_weights import without_weights, zeros

# Shapes: B rows, K tokens; C, H and W of the latent, h and w of the image.


@dataclass(frozen=True, eq=False, kw_only=True)
class Generic(Model):
    """A model of a pipeline that has no family. `of_folder` makes a subclass with the parts of a folder.

    Captions are encoded one at a time and run one at a time, so that no score depends on what else is in a batch.

    Attributes:
        PIPELINE: The pipeline's class.
    """

    OWN_LOOP: ClassVar = True
    PIPELINE: ClassVar[Any]

    @classmethod
    def of_folder(cls, folder: Path) -> type[Model]:
        """Make the class of a folder from its `model_index.json` (see `Model`)."""
        parts = parts_of(folder)
        inherited = {"vae", "tokenizer"}
        fields = [
            (name, Any, field(repr=False)) for name in (*parts.networks, *parts.tokenizers) if name not in inherited
        ]
        constants = {
            "NETWORKS": parts.networks,
            "TOKENIZERS": parts.tokenizers,
            "SETTINGS": parts.settings,
            "DENOISER": parts.denoiser,
            "PIPELINE": parts.pipeline,
        }
        return make_dataclass(
            parts.pipeline.__name__,
            fields,
            bases=(cls,),
            namespace=constants,
            frozen=True,
            eq=False,
            kw_only=True,
        )

    @classmethod
    def read_scheduler(cls, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the scheduler's file as it is, after checking that its noise levels are known (see `Model`)."""
        file = folder / "scheduler" / "scheduler_config.json"
        config = read_json(file)
        if "_class_name" not in config:
            hint = 'Add "_class_name", the class of the scheduler.'
            raise AuditError("the file does not name its scheduler class", where=str(file), hint=hint)
        _screen_schedule(config, str(file))
        if not config.get("use_dynamic_shifting"):  # which has no steps without a size
            scheduler = _scheduler(config)
            scheduler.set_timesteps(SCREEN_STEPS)
            if len(scheduler.timesteps) != SCREEN_STEPS:
                what = f"the scheduler is {config['_class_name']}, which takes more than one step at a time"
                hint = "Put a solver of order 1 for the same noise levels here, such as an Euler or DDIM scheduler."
                raise AuditError(what, where=str(file), hint=hint, kind="unsupported_model")
        return config, {"class": config["_class_name"], "without_effect": []}

    @classmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Check nothing here: `own_latent_shape` makes the pipeline, which checks its parts (see `Model`)."""

    @classmethod
    def own_latent_shape(
        cls, parts: Mapping[str, Any], resolution: int | tuple[int, int] | None, where: str
    ) -> tuple[int, int, int]:
        """Ask the pipeline for latents of this size, or of its default size (see `Model`)."""
        pipeline = cls._made(parts, where)
        size = None if resolution is None else checked_size(resolution, 1, where, "Give a positive number.")
        return latent_shape(pipeline, size, where)

    @classmethod
    def _made(cls, parts: Mapping[str, Any], where: str) -> Any:
        names = (*cls.NETWORKS, *cls.TOKENIZERS)
        taken, optional = signature(cls.PIPELINE.__init__).parameters, cls.PIPELINE._optional_components
        given = dict.fromkeys(name for name in optional if name in taken)
        given |= {name: parts[name] for name in names} | parts.get("settings", cls.SETTINGS)
        try:
            pipeline = cls.PIPELINE(**given, scheduler=_scheduler(parts["scheduler_config"]))
        except Exception as error:  # pipelines do not document what they raise
            raise unsupported(cls.PIPELINE, f"cannot be made of these parts: {first_line(error)}", where) from error
        pipeline.set_progress_bar_config(disable=True)
        networks = {name: parts[name] for name in cls.NETWORKS}
        empty = next(networks[cls.DENOISER].parameters()).is_meta
        return without_weights(pipeline, networks) if empty else pipeline

    @cached_property
    def _pipeline(self) -> Any:
        return self._made(vars(self), "")

    @property
    def layers(self) -> Sequence[nn.Module]:
        """No layers: where the image attends to the text is not known."""
        return ()

    @property
    def finest_layers(self) -> Sequence[nn.Module]:
        """No layers."""
        return ()

    @property
    def pixels_per_latent(self) -> int:
        """The width in pixels of one latent pixel."""
        return int(self._pipeline.vae_scale_factor)

    @property
    def multiple(self) -> int:
        """The width of one latent pixel. The pipeline itself refuses sizes that it cannot make."""
        return self.pixels_per_latent

    def at_resolution(self, resolution: int | tuple[int, int] | None) -> Self:
        """Return a model of another resolution, if the pipeline accepts it (see `Model`)."""
        model = super().at_resolution(resolution)
        if resolution is not None:
            latent_shape(self._pipeline, model.resolution, "screen.resolution")
        return model

    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokenize captions to count their words; the pipeline tokenizes for itself (see `Model`)."""
        words = [self.words(caption) for caption in captions]
        counts_B = torch.tensor([len(each) + 2 for each in words])
        place_K = torch.arange(max(map(len, words), default=0) + 3)
        mask_BK = (place_K < counts_B[:, None]).long()
        ids_BK = torch.zeros_like(mask_BK)
        for row, each in enumerate(words):
            ids_BK[row, 1 : len(each) + 1] = torch.tensor(each)
        return Tokens(ids_BK, mask_BK, counts_B, counts_B - 1)

    def words(self, caption: str) -> list[int]:
        """Return the ids of a caption's words by the first tokenizer (see `Model`)."""
        ids: list[int] = self.tokenizer(caption, add_special_tokens=False).input_ids
        return ids

    def embed(self, tokens: Tokens) -> Conditioning:
        """Raise NotImplementedError: pipelines encode captions, not tokens."""
        raise NotImplementedError

    @torch.inference_mode()
    def encode(self, captions: Sequence[str]) -> Encoded:
        """Keep what the pipeline's `encode_prompt` returns for each caption (see `Model`)."""
        return Encoded({}, self.tokenize(captions), [self._encoded(caption) for caption in captions])

    def _encoded(self, caption: str) -> list[Any]:
        results: list[Any] = []
        encode = self._pipeline.encode_prompt

        def keep(*args: Any, **kwargs: Any) -> Any:
            results.append(encode(*args, **kwargs))
            return results[-1]

        def end(*_: Any, **__: Any) -> Any:
            raise Ended

        with replaced(self._pipeline, encode_prompt=keep, prepare_latents=end):
            call = self._call(held(_scheduler(self.scheduler_config), []))
            ending(lambda: call(caption, guidance_scale=0.0, num_inference_steps=1))
        return results

    def null_tokens(self) -> None:
        """Return None: a row with the empty prompt runs the same forward twice, so its response is zero."""

    def null(self) -> Encoded:
        """Encode the empty prompt, in the way of all captions (see `Model`)."""
        return self.encode([""])

    def schedule(self, steps: int) -> Any:
        """Raise NotImplementedError: the pipeline has a schedule of its own."""
        raise NotImplementedError

    def check_steps(self, steps: int) -> None:
        """Raise UsageError if the number of steps is not positive (see `Model`)."""
        if steps < 1:
            raise UsageError(f"steps is {steps}", hint="Give a positive number, usually 20 to 50.")

    def screen_schedule(self) -> FlowSchedule | NearestSchedule:
        """Return the noise levels of Stable Diffusion's screen (see `Model`)."""
        return _screen_schedule(self.scheduler_config, "")

    @torch.inference_mode()
    def predict(self, latents_BCHW: Tensor, timestep: float, conditioning: Conditioning) -> Tensor:
        """Call the pipeline without guidance, one row at a time, up to its first step (see `Model`).

        Raises:
            AuditError: The pipeline runs its network more than once, so that its output has guidance in it.
        """
        assert isinstance(conditioning, Encoded)
        pairs = zip(latents_BCHW.split(1), conditioning.rows, strict=True)
        outputs = [self._output(latents_1CHW, timestep, row) for latents_1CHW, row in pairs]
        return torch.cat(outputs).float().to(latents_BCHW.device)

    def _output(self, latents_1CHW: Tensor, timestep: float, row: Sequence[Any]) -> Tensor:
        results = iter(row)
        network = getattr(self, self.DENOISER)
        with replaced(self._pipeline, encode_prompt=lambda *_, **__: next(results)), rows_given(network) as counts:
            call = self._call(held(_scheduler(self.scheduler_config), [timestep]), latents_1CHW)
            output_1CHW: Tensor = ending(lambda: call("", guidance_scale=0.0, num_inference_steps=1))
        if counts != [1]:
            what = f"runs its {self.DENOISER} {len(counts)} times on {sum(counts)} rows for one caption"
            raise unsupported(self.PIPELINE, f"{what} without guidance", "")
        return output_1CHW

    def _call(self, scheduler: Any, latents_1CHW: Tensor | None = None) -> Callable[..., Any]:
        self._pipeline.scheduler = scheduler
        height, width = self.resolution
        given = None if latents_1CHW is None else latents_1CHW.to(self.dtype)
        if given is not None and given.is_meta:
            given = zeros(given)

        def call(caption: str, **settings: Any) -> Any:
            settings = fixed(self._pipeline) | settings
            try:
                return self._pipeline(prompt=caption, latents=given, height=height, width=width, **settings)
            except (NotImplementedError, RuntimeError) as error:
                if self.device.type != "meta":
                    raise
                what = f"cannot be run without weights, to count its FLOPs: {first_line(error)}"
                hint = "`crossaudit run` works without a plan."
                raise AuditError(f"{self.PIPELINE.__name__} {what}", hint=hint, kind="unsupported_model") from error

        return call

    @torch.inference_mode()
    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Call the pipeline on latents with no steps left (see `Model`)."""
        images = []
        for latents_1CHW in latents_BCHW.split(1):
            call = self._call(held(_scheduler(self.scheduler_config), []), latents_1CHW)
            images.append(call("", guidance_scale=0.0, num_inference_steps=1, output_type="pt").images)
        return torch.cat(images).to(latents_BCHW.device) * 2 - 1

    def run_own_loop(
        self,
        caption: str,
        noise_1CHW: Tensor,
        seed: int,
        steps: int,
        guidance_scale: float,
        observe: Callable[[int, Tensor, Tensor], None],
    ) -> None:
        """Call the pipeline with its own scheduler (see `Model`)."""
        generator = torch.Generator("cpu").manual_seed(seed)
        torch.randn(self.latent_shape, generator=generator)  # the initial noise; a scheduler may draw more
        call = self._call(observed(_scheduler(self.scheduler_config), observe), noise_1CHW)
        with suppress(Ended):
            call(caption, guidance_scale=guidance_scale, num_inference_steps=steps, generator=generator)

    def pipeline(self) -> Any:
        """Make the pipeline with its own scheduler (see `Model`)."""
        return ready(self._made(vars(self), ""), self)


def _scheduler(config: Mapping[str, Any]) -> Any:
    return getattr(diffusers, config["_class_name"]).from_config(dict(config))


def _screen_schedule(config: Mapping[str, Any], where: str) -> FlowSchedule | NearestSchedule:
    """Return the noise levels of a screen, for a flow or for a network that predicts noise or velocity.

    Raises:
        AuditError: The noise levels of the scheduler are not known.
    """
    name = config["_class_name"]
    if not (name.startswith("FlowMatch") or config.get("use_flow_sigmas")):
        return NearestSchedule(resolve(config, name, where), screen_alphas())
    longest, inverted = config.get("num_train_timesteps", LONGEST), config.get("invert_sigmas", False)
    if longest != LONGEST or inverted or not hasattr(diffusers, name):
        what = f"the scheduler is {name} with {longest} timesteps and invert_sigmas {inverted}"
        hint = f"Supported are flow-matching schedulers of diffusers with {LONGEST} timesteps, not inverted."
        raise AuditError(what, where=where, hint=hint, kind="unsupported_model")
    return screen_flow()
