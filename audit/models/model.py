"""Define what a model is to everything that runs one: a family of models is a subclass (docs/how-to)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from audit.attention.probe import CROSS, AttentionProbe, MapProbe, Places
from audit.models.architecture import check_parts, checked_size, pixels_per_latent
from audit.models.conditioning import Conditioning, Tokens
from audit.models.precision import name_of
from audit.models.schedule import Schedule
from audit.models.schedulers import read_scheduler
from audit.models.transfers import to_device

# Shapes: B rows, K text positions; C, H and W of the latent, h and w of the image.

# Arguments of pipelines: captions stay as they are, and images keep the size that was asked for.
AS_GIVEN: Mapping[str, bool] = {"clean_caption": False, "use_resolution_binning": False}


@dataclass(frozen=True, eq=False, kw_only=True)
class Model(ABC):
    """A loaded model in eval mode, with everything that a result depends on.

    A subclass is a family of models. It has one field per network and tokenizer, named like its folder in a diffusers
    pipeline, and defines the abstract methods.

    Attributes:
        NETWORKS: Class of each network, by the name of its folder.
        TOKENIZERS: Class of each tokenizer, likewise.
        DENOISER: The network that is sampled.
        SETTINGS: Entries of `model_index.json` that change what the pipeline computes, and their defaults.
        CALL: Further arguments of calls of the pipeline, with which it does what `audit.generate` does.
        ADDITIONS: Which of `lora` and `textual_inversion` can be added to the weights.
        GUIDED: Whether guidance is classifier-free. If not, the network is given the guidance scale.
        PLANTED: Which detectors were measured on planted models of this family (docs/evidence.md), by the stage that
            runs them: `screen`, `generate`.
        OWN_LOOP: Whether images are made by `run_own_loop`, and not from `schedule`, `null` and `predict`. Then only
            predicted noise is seen: no attention, and no response in the steps of a run.
        scheduler_config: Every parameter of sampling.
        device: Device that the model runs on.
        dtype: Dtype that it runs in.
        latent_shape: (C, H, W).
        weights_sha256: Hashes of the files of each network and tokenizer, and of `lora` and `textual_inversion` if
            there are any. For a component with one weights file, the output of `sha256sum`.
        loaded_sha256: Hashes of the weights of each network as loaded, before LoRA, in the dtype in which they run.
        facts: Other decisions made on loading, such as the resolution, in words.
        about: Further entries for the manifest: `scheduler` (its class, and the keys of its file that have no effect)
            and, for a folder, `files_not_read`.
        settings: Values of SETTINGS.
        takes_turns: Whether T5 and the denoiser take turns on the device, which is too small for both. Then the
            captions of several batches are encoded before the first of them is denoised.
        batch_sizes: Batch sizes that were found, by task and size of the latents (`audit.scoring.batching`).
    """

    NETWORKS: ClassVar[Mapping[str, type[nn.Module]]]
    TOKENIZERS: ClassVar[Mapping[str, type]]
    DENOISER: ClassVar[str]
    GUIDED: ClassVar[bool] = True
    PLANTED: ClassVar[tuple[str, ...]] = ()
    OWN_LOOP: ClassVar[bool] = False
    SETTINGS: ClassVar[Mapping[str, Any]] = {}
    CALL: ClassVar[Mapping[str, Any]] = {}
    ADDITIONS: ClassVar[tuple[str, ...]] = ()

    vae: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    scheduler_config: Mapping[str, Any]
    device: torch.device
    dtype: torch.dtype
    latent_shape: tuple[int, int, int]
    weights_sha256: Mapping[str, str]
    loaded_sha256: Mapping[str, str] = field(default_factory=dict, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict, repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict)
    takes_turns: bool = False
    batch_sizes: dict[str, int] = field(default_factory=dict, repr=False)

    # What loading asks of a family.

    @classmethod
    def of_folder(cls, folder: Path) -> type[Model]:
        """Return the class for a folder: a subclass, if parts of the family are optional."""
        return cls

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Raise AuditError if a folder lacks a part, or a part is of another class or quantized. Reads no weights."""
        check_parts(folder, cls.NETWORKS, cls.TOKENIZERS)

    @classmethod
    def read_scheduler(cls, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read `scheduler_config` from a folder, and the record of it for the manifest (`audit.models.schedulers`)."""
        return read_scheduler(folder)

    @classmethod
    @abstractmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Raise AuditError if the parts do not fit together, or the family cannot run them as their pipeline would.

        Args:
            parts: The networks, without weights, and the tokenizers, by name.
            where: The model, for errors.
        """

    @classmethod
    @abstractmethod
    def own_latent_shape(
        cls, parts: Mapping[str, Any], resolution: int | tuple[int, int] | None, where: str
    ) -> tuple[int, int, int]:
        """Determine the shape of the latents, and note it in the denoiser's configuration for its pipeline.

        Args:
            parts: The networks and tokenizers.
            resolution: Resolution in pixels, one number or (height, width); None for that of the configuration.
            where: The model, for errors.
        """

    # What scoring asks of a family.

    @property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The layers in which the image attends to the text, in order of execution."""

    @property
    def finest_layers(self) -> Sequence[nn.Module]:
        """Those of the layers that locate a copy in the image: of the highest resolution, in the first half.

        The default is that of transformers, whose layers all have the resolution of the patches.
        """
        return self.layers[: (len(self.layers) + 1) // 2]

    @property
    def places(self) -> Places:
        """Where these layers have their image queries and text keys."""
        return CROSS

    @property
    def pixels_per_latent(self) -> int:
        """The width in pixels of one latent pixel."""
        return pixels_per_latent(self.vae.config)

    @property
    @abstractmethod
    def multiple(self) -> int:
        """What height and width of an image, in pixels, must be divisible by for the denoiser to take it."""

    @abstractmethod
    def tokenize(self, captions: Sequence[str]) -> Tokens:
        """Tokenize captions, padded and truncated to the model's length."""

    @abstractmethod
    def words(self, caption: str) -> list[int]:
        """Return the ids of a caption's words by `word_tokenizer`, truncated to the model's length."""

    @abstractmethod
    def embed(self, tokens: Tokens) -> Conditioning:
        """Compute what the denoiser is given of tokenized captions, in the model's dtype."""

    def null_tokens(self) -> Tokens | None:
        """Return the tokens that `null` stands for: those of the empty prompt, or None if it is made of no text."""
        return self.tokenize([""])

    def null(self) -> Conditioning:
        """Return what the denoiser is given without a caption: one row, as in the unconditional branch of guidance.

        The default is the encoded empty prompt.
        """
        return self.encode([""])

    @abstractmethod
    def schedule(self, steps: int) -> Schedule:
        """Return the schedule of a run. Raise UsageError if it cannot have that number of steps."""

    @abstractmethod
    def screen_schedule(self) -> Schedule:
        """Return the 50 noise levels that a screen looks at, whose SNRs are those of Stable Diffusion's schedule."""

    @abstractmethod
    def predict(self, latents_BCHW: Tensor, timestep: float, conditioning: Conditioning) -> Tensor:
        """Run the denoiser in the model's dtype on float32 latents.

        Args:
            latents_BCHW: Noisy latents.
            timestep: Time, as in `Schedule.timesteps`, the same for all rows.
            conditioning: What it is given of the captions.

        Returns:
            The output [B, C, H, W], in float32: what it predicts depends on how it was trained.
        """

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Decode latents to images [B, 3, h, w] of values about -1 to 1, in the model's dtype."""
        scaled_BCHW = latents_BCHW / self.vae.config["scaling_factor"]
        decoded_B3hw: Tensor = self.vae.decode(scaled_BCHW.to(self.dtype)).sample
        return decoded_B3hw

    @abstractmethod
    def pipeline(self) -> Any:
        """Make the family's diffusers pipeline; for the same noise, its latents equal those of `audit.generate`."""

    def run_own_loop(
        self,
        caption: str,
        noise_1CHW: Tensor,
        seed: int,
        steps: int,
        guidance_scale: float,
        observe: Callable[[int, Tensor, Tensor], None],
    ) -> None:
        """Denoise one row by the call of the pipeline, with its own scheduler and unconditional branch (OWN_LOOP).

        Args:
            caption: The caption.
            noise_1CHW: Initial noise.
            seed: Seed of the noise that a scheduler may add in its steps.
            steps: Number of denoising steps.
            guidance_scale: Guidance scale.
            observe: Called with the number of each step, and the latents before and after it. It may end the run by
                raising `audit.models.own_pipeline.Ended`.
        """
        raise NotImplementedError

    def call_pipeline(
        self, pipeline: Any, captions: Sequence[str], noise_BCHW: Tensor, steps: int, guidance_scale: float
    ) -> Tensor:
        """Call a pipeline that `pipeline` made.

        Args:
            pipeline: The pipeline.
            captions: A caption for each row of noise.
            noise_BCHW: The initial latents.
            steps: Number of denoising steps.
            guidance_scale: The guidance scale.

        Returns:
            The final latents: [B, C, H, W].
        """
        height, width = self.resolution
        latents_BCHW: Tensor = pipeline(
            list(captions),
            latents=noise_BCHW.to(self.dtype),
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            output_type="latent",
            **self.CALL,
        ).images
        return latents_BCHW

    # What all families share.

    def check_steps(self, steps: int) -> None:
        """Raise UsageError if a run cannot have that number of steps."""
        self.schedule(steps)

    @property
    def word_tokenizer(self) -> Any:
        """The tokenizer of the text positions that the image attends to."""
        return self.tokenizer

    def word_texts(self, caption: str) -> list[str]:
        """Return the texts of all words that the image attends to: positions 1, 2, ... of the canonical layout."""
        return [str(self.word_tokenizer.decode([word])).strip() for word in self.words(caption)]

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Compute what the denoiser is given of captions."""
        return self.embed(self.tokenize(captions))

    def sharing_prefix(self, period: int, rows: int) -> AbstractContextManager[None]:
        """Compute once, inside the `with` block, what rows with the same latents share, if the family can.

        Args:
            period: Row i has the latents of row i modulo this number. All rows have the same timestep.
            rows: Number of rows of each forward.
        """
        return nullcontext()

    def with_guidance(self, conditioning: Conditioning, scale: float) -> Conditioning:
        """Return a conditioning with a guidance scale, for families in which the denoiser is given it.

        Args:
            conditioning: What the denoiser is given of the captions.
            scale: The guidance scale.
        """
        return conditioning

    def probe(
        self,
        conditioning: Conditioning,
        count: int | None = None,
        rows: slice = slice(None),
        stop: bool = False,
    ) -> AttentionProbe:
        """Return a probe of the attention to captions, in the canonical layout.

        Args:
            conditioning: What the denoiser is given of the captions whose rows are read.
            count: Number of layers to read, from the first on; None for all.
            rows: Rows of the denoiser's batch to read.
            stop: As for `AttentionProbe`.
        """
        order_BK = None if conditioning.tokens is None else conditioning.tokens.order_BK
        return AttentionProbe(self.layers[:count], rows, stop, places=self.places, order_BK=order_BK)

    def end_probe(self, conditioning: Conditioning, rows: slice) -> MapProbe:
        """Return a probe of each image query's attention to END, in the finest layers.

        Args:
            conditioning: What the denoiser is given of the captions whose rows are read.
            rows: Rows of the denoiser's batch to read.
        """
        assert conditioning.tokens is not None
        return MapProbe(self.finest_layers, to_device(conditioning.tokens.end_B, self.device), rows, self.places)

    @property
    def networks(self) -> dict[str, Any]:
        """The networks by name."""
        return {name: getattr(self, name) for name in self.NETWORKS}

    @property
    def architecture(self) -> list[Any]:
        """The configurations of the networks."""
        configs = [network.config for network in self.networks.values()]
        return [dict(config) if isinstance(config, Mapping) else config.to_dict() for config in configs]

    @property
    def fingerprint(self) -> dict[str, str]:
        """Everything that the workers of a run must agree on: hashes of files and loaded weights, dtype and facts."""
        settings = {name: str(value) for name, value in self.settings.items()}
        return {**self.weights_sha256, **self.loaded_sha256, "dtype": name_of(self.dtype), **self.facts, **settings}

    @property
    def resolution(self) -> tuple[int, int]:
        """Height and width of the generated images, in pixels."""
        _, height, width = self.latent_shape
        return self.pixels_per_latent * height, self.pixels_per_latent * width

    def at_resolution(self, resolution: int | tuple[int, int] | None) -> Self:
        """Return a model that shares the networks of this one and runs on latents of another size, for screening.

        Args:
            resolution: Resolution in pixels, one number or (height, width); None for this model's own.

        Raises:
            UsageError: The denoiser cannot take latents of this size.
        """
        if resolution is None:
            return self
        hint = f"Set screen.resolution (resolution=) to a multiple of {self.multiple} pixels, or [height, width]."
        height, width = checked_size(resolution, self.multiple, "screen.resolution", hint)
        scale = self.pixels_per_latent
        return replace(self, latent_shape=(self.latent_shape[0], height // scale, width // scale))
