"""Pydantic models of audit.yaml. `pipelines.configuration.settings` reads the file and reports its errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    field_validator,
    model_validator,
)

from audit.defaults import DEFAULT_DETECTOR
from audit.models.precision import DtypeName
from audit.statistics.intervals import controls_needed
from pipelines.configuration.inputs import (
    MOST,
    Captions,
    ControlCaptions,
    Images,
    ModelFiles,
    Rate,
    Resolution,
    Section,
    Seeds,
)
from pipelines.configuration.select import Select


class Screen(Section):
    """How to screen captions."""

    detectors: list[str] = Field(
        default=[DEFAULT_DETECTOR], min_length=1, description="Detectors to run; the first one ranks the captions."
    )
    seeds: Seeds = [0]
    batch_size: int | None = Field(
        default=None,
        gt=0,
        le=1 << 16,
        description="Captions per forward pass (default: 16 on the CPU; on a GPU, as many as are fast and fit).",
    )
    resolution: Resolution | None = Field(
        default=None,
        description="Resolution of the screen in pixels: one number or [height, width] (default: that of the model). "
        "Images are generated at the model's resolution.",
    )

    def pixels(self) -> int | tuple[int, int] | None:
        """Return the resolution as `audit.screen` takes it."""
        found = self.resolution
        return (found[0], found[1]) if isinstance(found, list) else found


class Generate(Section):
    """How to generate images for the selected captions."""

    seeds: Seeds = [1, 2, 3, 4]
    steps: int = Field(default=50, gt=0, le=1000)
    guidance_scale: float = Field(default=7.5, ge=0, le=1000)
    batch_size: int | None = Field(default=None, gt=0, le=1 << 16)
    detectors: list[str] = Field(default=[], description="Trajectory detectors to record, such as entropy_trajectory.")


class _Embedder(Section):
    min_similarity_verbatim: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="The minimum similarity of a verbatim copy: the threshold is never lower (default: 0.5 for SSCD, "
        "the measured value for a small descriptor; other embedders cannot decide without it).",
    )
    min_similarity_region: float | None = Field(
        default=None, ge=-1, le=1, description="The same minimum for a region, which decides on `partial`."
    )
    min_similarity_duplicate: float | None = Field(
        default=None,
        description="The similarity at or above which two training images are near duplicates (default: the similarity "
        "of edited copies).",
    )
    background: str | None = Field(
        default=None,
        description="An index of other images. The mean similarity of a generation to its two nearest is subtracted.",
    )

    def network(self) -> dict[str, Any]:
        """Return the options that the vectors depend on, without those that only interpret the vectors."""
        return self.model_dump(mode="json", exclude=set(_Embedder.model_fields))


class SscdOptions(_Embedder):
    """Options of the SSCD embedder."""

    weights: str = Field(
        default="sscd_disc_mixup",
        description="sscd_disc_mixup or sscd_disc_large, from the cache (`crossaudit download-weights`), or a file: "
        ".torchvision.pt, .torchscript.pt, or .safetensors of a small descriptor.",
    )
    resize: Literal["square_320", "short_288"] = Field(
        default="square_320",
        description="How to resize an image for SSCD: to a 320-pixel square, or to a short side of 288 pixels.",
    )
    torchscript: bool = Field(default=False, description="Allow .torchscript.pt files. They are programs and run code.")


class ClipOptions(_Embedder):
    """Options of the CLIP embedder."""

    weights: str = Field(description="An open_clip folder, architecture/tag, or (with `model`) a weights file.")
    model: str | None = Field(
        default=None, description="The open_clip architecture, or architecture/tag, of a weights file."
    )


class Confirm(Section):
    """How to decide whether a generation is a copy of a training image."""

    embedders: list[Literal["sscd", "clip"]] = Field(
        default=["sscd"], min_length=1, description="Image embedders; the first one decides."
    )
    fresh_seeds: int = Field(default=16, ge=0, le=10_000, description="Number of new seeds per confirmed caption.")
    control_captions: int = Field(
        default=1000,
        gt=0,
        le=MOST,
        description="Number of control captions to generate. One half sets the thresholds, the other half measures how "
        "often captions are confirmed by mistake.",
    )
    control_rate: Rate = Field(
        default=0.01, description="The fraction of control captions allowed above the threshold."
    )
    max_unreadable_fraction: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="If a larger fraction of the images is unreadable, a caption without a match is `unknown`.",
    )
    sscd: SscdOptions = SscdOptions()
    clip: ClipOptions | None = None

    @model_validator(mode="after")
    def _control_captions_reach_the_rate(self) -> Confirm:
        need = 2 * controls_needed(self.control_rate)  # one half sets the thresholds
        if self.control_captions < need:
            raise ValueError(f"control_rate {self.control_rate} needs at least {need} control_captions")
        return self


class Index(Section):
    """How to search the training images."""

    type: Literal["exact", "ivf"] = Field(
        default="exact",
        description="exact: compare with every image. ivf: use an inverted file, and compare images only within a few "
        "cells; for many images, or for many audits of the same images.",
    )
    path: str | None = Field(
        default=None,
        description="Reuse the image vectors of an index from `crossaudit index`, or of an earlier run.",
    )


class Workers(Section):
    """The minimum and maximum number of workers. Both are 0 if the work is done in this process, without Ray."""

    min: int = Field(default=1, ge=0, le=100_000)
    max: int = Field(ge=0, le=100_000)

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is greater than max ({self.max})")
        if self.min == 0 < self.max:
            raise ValueError("min is 0; give at least 1, or `workers: 0` to work in this process")
        return self


def _fixed(value: Any) -> Any:
    """Expand a bare number of workers to {min: N, max: N}."""
    if isinstance(value, Workers | dict):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is neither a number of workers nor {{min, max}}")
    return {"min": value, "max": value}


class Engine(Section):
    """Workers, hardware and retries."""

    workers: Annotated[Workers, BeforeValidator(_fixed, json_schema_input_type=Workers | NonNegativeInt)] = Field(
        default=Workers(max=1),
        description="Number of workers. {min, max}: as many within this range as there is work and capacity for. "
        "0: work in this process, without Ray.",
    )
    cpus_per_worker: int = Field(default=1, gt=0, le=4096)
    gpus_per_worker: float = Field(
        default=0, ge=0, le=1, description="One GPU, or a fraction of one. 0 runs on the CPU."
    )
    dtype: DtypeName = Field(
        default="auto",
        description="The data type of the model: float32, bfloat16 or float16. auto: bfloat16 on a GPU that supports "
        "it, float16 on an older GPU, float32 on the CPU. Scores and latents are always float32.",
    )
    compile: bool = Field(
        default=False,
        description="Compile blocks of the denoiser with torch.compile. On an H200, a screen with Stable Diffusion 1.5 "
        "becomes 6 to 8 % faster after two minutes of compilation per worker. Scores differ by rounding.",
    )
    shard_rows: int = Field(
        default=1024, gt=0, le=MOST, description="Captions or images per shard, the unit of work and of retry."
    )
    retries: int = Field(default=2, ge=0, le=1000, description="How often to retry a failed shard before splitting it.")
    shard_timeout_s: float | None = Field(
        default=None, gt=0, description="Time limit for a shard, or for a piece of one, in seconds (default: no limit)."
    )
    address: str | None = Field(
        default=None, description="The address of a running Ray cluster (default: start Ray on this machine)."
    )
    keep_work: bool = Field(
        default=False, description="Keep the working tables (OUT/_work) of a finished run, for debugging."
    )

    @field_validator("gpus_per_worker", mode="before")
    @classmethod
    def _one_at_most(cls, gpus: Any) -> Any:
        if isinstance(gpus, int | float) and gpus > 1:
            raise ValueError(f"{gpus:g} GPUs, but a worker uses one; to use more, set engine.workers")
        return gpus

    @model_validator(mode="after")
    def _in_process(self) -> Engine:
        for name in ("address", "shard_timeout_s"):
            if self.workers.max == 0 and getattr(self, name) is not None:
                raise ValueError(f"`{name}` needs at least one worker, and `workers` is 0")
        return self


class Report(Section):
    """The HTML report."""

    title: str = "crossaudit"
    show_training_images: bool = Field(
        default=False,
        description="Whether reports show training images. Otherwise they are blurred. Generated images are not, even "
        "where they are copies.",
    )


def _short_forms(schema: dict[str, Any]) -> None:
    """Allow bare paths for models, `captions` and `images` in the JSON schema."""
    one, several = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    short: dict[str, list[Any]] = {
        "model": [one],
        "reference_model": [one],
        "captions": [one, several],
        "images": [one, several],
    }
    for name, paths in short.items():
        known = schema["properties"][name]
        schema["properties"][name] = {"anyOf": [*known.pop("anyOf", [known.copy()]), *paths]}


class Config(Section):
    """The contents of audit.yaml. Relative paths are relative to that file."""

    model_config = ConfigDict(json_schema_extra=_short_forms)

    model: ModelFiles
    reference_model: ModelFiles | None = Field(
        default=None,
        description="A model that cannot have memorized these captions. Scores are differences from its scores.",
    )
    lora: str | None = Field(
        default=None,
        description="LoRA weights to add to the model: a .safetensors file, or a folder written by PEFT.",
    )
    captions: Captions
    images: Images | None = None
    calibration: ControlCaptions
    screen: Screen = Screen()
    select: Select = Select()
    generate: Generate = Generate()
    confirm: Confirm = Confirm()
    index: Index = Index()
    engine: Engine = Engine()
    report: Report = Report()
    out: str = Field(default="run", description="Where to write the run: a folder, or any URI that pyarrow can open.")

    @model_validator(mode="after")
    def _embedders_have_weights(self) -> Config:
        for name in self.confirm.embedders if self.images else []:
            if getattr(self.confirm, name) is None:
                raise ValueError(f"confirm.embedders names {name}, but confirm.{name}: {{weights: ...}} is missing")
        return self

    @model_validator(mode="after")
    def _stopping_needs_images(self) -> Config:
        if self.select.until is not None and self.images is None:
            raise ValueError("select.until needs `images`, because sampling stops by what copies them")
        return self

    def scoring(self) -> tuple[str, ...]:
        """Return the names of the models that workers load to score captions."""
        return ("model",) if self.reference_model is None else ("model", "reference_model")

    def fresh_seeds(self) -> list[int]:
        """Return the fresh seeds, which neither screen nor generate uses."""
        first = max(*self.screen.seeds, *self.generate.seeds) + 1
        return list(range(first, first + self.confirm.fresh_seeds))

    def embedder(self, name: str) -> SscdOptions | ClipOptions:
        """Return the options of an embedder, by its name."""
        return getattr(self.confirm, name)
