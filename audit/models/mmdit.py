"""What the transformers with joint attention share (MMDiT, arXiv 2403.03206): Stable Diffusion 3 and FLUX."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from audit.errors import AuditError
from audit.models.architecture import check_vae, checked_size, pixels_per_latent
from audit.models.flow import FlowSchedule, screen_flow
from audit.models.flow_scheduler import flow_schedule, read_flow_scheduler
from audit.models.model import Model

# Shapes: B rows; C, H and W of the latent.

PATCH = 2  # width of a patch in latent pixels


@dataclass(frozen=True, eq=False, kw_only=True)
class Mmdit(Model):
    """A transformer whose image and text positions attend to each other, trained by flow matching.

    Attributes:
        LINEAR: Whether the pipeline gives the scheduler linear noise levels (`audit.models.flow_scheduler`).
    """

    DENOISER: ClassVar = "transformer"
    ADDITIONS: ClassVar = ("lora",)
    LINEAR: ClassVar[bool]

    transformer: Any = field(repr=False)

    @classmethod
    def read_scheduler(cls, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the scheduler of a flow (see `Model`)."""
        return read_flow_scheduler(folder)

    @classmethod
    def check(cls, parts: Mapping[str, Any], where: str) -> None:
        """Check that the autoencoder fits (see `Model`)."""
        vae = parts["vae"].config
        check_vae(vae, cls.channels(parts["transformer"].config), where, applied=("shift_factor",))
        if vae.get("shift_factor") is None:
            what = "the VAE has no shift_factor, which the pipeline adds to latents"
            hint = "Take the autoencoder of the base model."
            raise AuditError(what, where=where, hint=hint, kind="unsupported_model")

    @classmethod
    @abstractmethod
    def channels(cls, transformer: Mapping[str, Any]) -> int:
        """Return the number of latent channels that a configuration of the transformer takes."""

    @classmethod
    @abstractmethod
    def own_size(cls, transformer: Mapping[str, Any]) -> int:
        """Return the width in latent pixels of the images that the pipeline makes by default."""

    @classmethod
    def own_latent_shape(
        cls, parts: Mapping[str, Any], resolution: int | tuple[int, int] | None, where: str
    ) -> tuple[int, int, int]:
        """Determine the shape of the latents (see `Model`)."""
        transformer, scale = parts["transformer"].config, pixels_per_latent(parts["vae"].config)
        size = cls.own_size(transformer) * scale if resolution is None else resolution
        hint = f"Set model.resolution (resolution=) to a multiple of {scale * PATCH}, or [height, width]."
        height, width = checked_size(size, scale * PATCH, where, hint)
        return cls.channels(transformer), height // scale, width // scale

    @cached_property
    @abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The joint attention layers in order of execution."""

    @property
    def patches(self) -> int:
        """The number of image positions."""
        _, height, width = self.latent_shape
        return (height // PATCH) * (width // PATCH)

    @property
    def multiple(self) -> int:
        """What the sides of an image must be divisible by: the width of a patch in pixels."""
        return self.pixels_per_latent * PATCH

    def schedule(self, steps: int) -> FlowSchedule:
        """Return the schedule of a run at this resolution (see `Model`)."""
        return flow_schedule(self.scheduler_config, steps, self.patches, self.LINEAR)

    def screen_schedule(self) -> FlowSchedule:
        """Return the noise levels whose SNRs are those of Stable Diffusion."""
        return screen_flow()

    def decode(self, latents_BCHW: Tensor) -> Tensor:
        """Decode latents, scaled and shifted (see `Model`)."""
        scaled_BCHW = latents_BCHW / self.vae.config["scaling_factor"] + self.vae.config["shift_factor"]
        decoded_B3hw: Tensor = self.vae.decode(scaled_BCHW.to(self.dtype)).sample
        return decoded_B3hw
