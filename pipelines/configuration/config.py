"""The models of audit.yaml. Reading one, with its errors, is `pipelines.configuration.settings`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from audit.models.precision import DtypeName
from audit.statistics.intervals import controls_needed


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds are distinct numbers")
    return seeds


Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
Rate = Annotated[float, Field(gt=0, lt=1)]
# Beyond this a number of rows or files is a slip of the pen; it fits in 64 bits with room to add.
MOST = 10**15


class _Section(BaseModel):
    # Strict: `true` is no number, and a text is none either.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _paths(value: Any) -> Any:
    """A bare path, or a list of them, is short for {path: ...}."""
    return {"path": value} if isinstance(value, str | list) else value


def _path(value: Any) -> Any:
    """A bare path is short for {path: ...}."""
    return {"path": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """One item is short for a list of one."""
    return [value] if isinstance(value, str | dict) else value


Pixels = Annotated[int, Field(gt=0)]


class Inversion(_Section):
    path: str = Field(description="Learned embeddings: .safetensors, or .pt or .bin that loads without running code.")
    token: str | None = Field(
        default=None, description="The token that captions use for it (default: the one that the file says)."
    )

    _short = model_validator(mode="before")(_path)


class ModelFiles(_Section):
    path: str = Field(
        description="A diffusers folder with safetensors weights, one .safetensors file of Stable Diffusion 1.x or 2.x "
        "in the original layout, path or URI, or a hub id."
    )
    resolution: Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description="Pixels of the images: one number or [height, width] (default: as the UNet's sample_size says).",
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        default=None,
        description="What the UNet predicts (default: as the scheduler's configuration says; of a single file, as its "
        "marker says or as measured).",
    )
    variant: str | None = Field(
        default=None, description="The variant of the weights, such as fp16 (default: none, or the only one there is)."
    )
    config: str | None = Field(
        default=None,
        description="For a single file of another architecture: a diffusers folder with its configurations and "
        "tokenizer.",
    )
    textual_inversion: Annotated[
        list[Inversion], BeforeValidator(_listed, json_schema_input_type=list[Inversion | str] | Inversion | str)
    ] = Field(default=[], description="Learned embeddings: paths, or {path, token} each.")

    _short = model_validator(mode="before")(_path)


class Captions(_Section):
    path: str | list[str] = Field(
        description="Parquet, WebDataset tars, JSON lines, CSV, TSV or text: a path, a glob, a brace range, or a list."
    )
    caption: str = Field(
        default="caption",
        description="The column that holds the captions (default: `caption`, or else the only one of text, prompt, "
        "TEXT and Prompt).",
    )
    key: str | None = Field(
        default=None, description="The column of the sample key (default: `key` where there is one)."
    )
    url: str | None = Field(
        default=None, description="The column of the source URL (default: `url` where there is one)."
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="The delimiter of CSV files (default: the one that the line of names has).",
    )
    sample: int | None = Field(default=None, gt=0, le=MOST, description="So many rows at random, not all.")
    seed: Seed = Field(default=0, description="The seed of that draw.")

    _short = model_validator(mode="before")(_paths)


class Images(_Section):
    path: str | list[str] = Field(
        description="WebDataset tars, Parquet files with image bytes, or image files: paths, folders or globs."
    )
    column: str = Field(default="image", description="The column of the image bytes in Parquet files.")
    join_on: Literal["stem_key", "key", "none"] = Field(
        default="stem_key",
        description="How a caption finds its own image: by file stem and key, by key alone, or not at all.",
    )
    crop: Literal["none", "centre"] = Field(
        default="none", description="How training cropped them: not at all, or to the largest square in the middle."
    )

    min_paired: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="The run stops if a smaller share of the rows finds its own image (unless join_on is none, or all "
        "captions are plain text, whose lines name no image).",
    )
    exif: Literal["apply", "ignore", "both"] = Field(
        default="both",
        description="Whether training applied the EXIF orientation of the files, or ignored it and saw the pixels as "
        "stored; both: each image is compared both ways, and the better match counts.",
    )

    _short = model_validator(mode="before")(_paths)


class ControlCaptions(_Section):
    captions: str = Field(description="Captions never trained on: a text file, one a line, or Parquet.")
    column: str = Field(
        default="caption",
        description="The column that holds them, if the file has columns (default: as for `captions.caption`).",
    )
    screen: str | None = Field(default=None, description="Their precomputed screen table (Parquet, of `audit.screen`).")


class Screen(_Section):
    detectors: list[str] = Field(default=["profile"], min_length=1, description="The first one ranks the captions.")
    seeds: Seeds = [0]
    batch_size: int | None = Field(
        default=None,
        gt=0,
        le=1 << 16,
        description="Captions a forward pass (default: as many as fit, 64 at most; 16 on the CPU).",
    )


class Select(_Section):
    budget: int | None = Field(
        default=None,
        ge=0,
        le=MOST,
        description="How many captions to generate, highest scores first (default: max(1000, 0.1 %)).",
    )
    audit_sample: int = Field(
        default=1000, ge=0, le=MOST, description="Captions drawn at random from all, whatever their score."
    )
    seed: Seed = Field(default=0, description="The seed of that draw.")
    perturbation_margin: bool = Field(
        default=False, description="Score eight variants of each selected caption beside it: eight screens more each."
    )


class Generate(_Section):
    seeds: Seeds = [1, 2, 3, 4]
    steps: int = Field(default=50, gt=0, le=1000)
    guidance_scale: float = Field(default=7.5, ge=0, le=1000)
    batch_size: int | None = Field(default=None, gt=0, le=1 << 16)
    detectors: list[str] = Field(default=[], description="Trajectory detectors to record, such as entropy_trajectory.")


class _Embedder(_Section):
    min_similarity_verbatim: float | None = Field(
        default=None,
        ge=-1,
        le=1,
        description="The floor under the threshold of `verbatim`: the least similarity of a copy "
        "(default: 0.5 for SSCD, what was measured for a small descriptor; other embedders need it to decide).",
    )
    min_similarity_region: float | None = Field(
        default=None, ge=-1, le=1, description="The same of a region, for `partial`."
    )
    min_similarity_duplicate: float | None = Field(
        default=None,
        description="From which similarity on training images are near duplicates (default: as edited copies are).",
    )
    background: str | None = Field(
        default=None,
        description="An index of other images: what a generation has in common with the two nearest is taken off.",
    )

    def network(self) -> dict[str, Any]:
        """What its vectors depend on: all but what is made of them."""
        return self.model_dump(mode="json", exclude=set(_Embedder.model_fields))


class SscdOptions(_Embedder):
    weights: str = Field(
        default="sscd_disc_mixup",
        description="sscd_disc_mixup or sscd_disc_large, from the cache (`crossaudit download-weights`), or a file: "
        ".torchvision.pt, .torchscript.pt, or .safetensors of a small descriptor.",
    )
    resize: Literal["square_320", "short_288"] = Field(
        default="square_320", description="How SSCD sees an image: skewed to a square, or its short side 288 pixels."
    )
    torchscript: bool = Field(default=False, description="Whether a .torchscript.pt file, a program, may be run.")


class ClipOptions(_Embedder):
    weights: str = Field(description="An open_clip folder, architecture/tag, or with `model` a file of weights.")
    model: str | None = Field(
        default=None, description="The open_clip architecture, or architecture/tag, of a file of weights."
    )


class Confirm(_Section):
    embedders: list[Literal["sscd", "clip"]] = Field(
        default=["sscd"], min_length=1, description="The first one decides."
    )
    fresh_seeds: int = Field(default=16, ge=0, le=10_000, description="New seeds for each confirmed caption.")
    control_captions: int = Field(
        default=200, gt=0, le=MOST, description="How many control captions set the threshold."
    )
    control_rate: Rate = Field(default=0.01, description="The rate of control captions allowed beyond the threshold.")
    max_unreadable_fraction: float = Field(
        default=0.01, ge=0, le=1, description="Beyond this share no match means `unknown`."
    )
    sscd: SscdOptions = SscdOptions()
    clip: ClipOptions | None = None

    @model_validator(mode="after")
    def _control_captions_reach_the_rate(self) -> Confirm:
        need = controls_needed(self.control_rate)
        if self.control_captions < need:
            raise ValueError(f"control_rate {self.control_rate} needs control_captions of at least {need}")
        return self


class Index(_Section):
    type: Literal["exact", "ivf"] = Field(
        default="exact",
        description="Compare generations and images with every image, or (for many images, or many audits of the same) "
        "with those of an inverted file, and images with those of a few lists.",
    )
    path: str | None = Field(
        default=None,
        description="Take the vectors of the images from there: what `crossaudit index` made, or an earlier run.",
    )


class Workers(_Section):
    min: int = Field(default=1, gt=0, le=100_000)
    max: int = Field(gt=0, le=100_000)

    @model_validator(mode="after")
    def _ordered(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"min is {self.min} and max {self.max}")
        return self


def _fixed(value: Any) -> Any:
    """A bare number of workers is short for {min: N, max: N}."""
    if isinstance(value, Workers | dict):
        return value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is neither a positive number nor {{min, max}}")
    return {"min": value, "max": value}


class Engine(_Section):
    workers: Annotated[Workers, BeforeValidator(_fixed, json_schema_input_type=Workers | PositiveInt)] = Field(
        default=Workers(max=1), description="How many; {min, max}: as many between them as there is work and room for."
    )
    cpus_per_worker: int = Field(default=1, gt=0, le=4096)
    gpus_per_worker: float = Field(
        default=0, ge=0, le=1024, description="Whole GPUs, or a fraction of one; 0 runs on the CPU."
    )
    dtype: DtypeName = Field(
        default="auto",
        description="What the model runs in: float32, bfloat16 or float16. auto: bfloat16 on a GPU that has it, "
        "float16 on an older one, float32 on the CPU. Scores and latents are float32 in any case.",
    )
    shard_rows: int = Field(
        default=1024, gt=0, le=MOST, description="Captions or images a shard: the unit of work and retry."
    )
    retries: int = Field(
        default=2, ge=0, le=1000, description="How often a shard that fails is tried again before it is split."
    )
    shard_timeout_s: float | None = Field(
        default=None, gt=0, description="A shard, or a piece of one, that takes longer has failed (default: no limit)."
    )
    address: str | None = Field(default=None, description="A running Ray cluster; by default one is started here.")

    @field_validator("gpus_per_worker")
    @classmethod
    def _whole_beyond_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"{gpus:g} GPUs: more than one must be whole ones")
        return gpus


class Report(_Section):
    title: str = "crossaudit"


def _short_forms(schema: dict[str, Any]) -> None:
    """Lets the JSON schema know that models, `captions` and `images` may be bare paths."""
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


class Config(_Section):
    """All of audit.yaml. Relative paths are relative to that file."""

    model_config = ConfigDict(json_schema_extra=_short_forms)

    model: ModelFiles
    reference_model: ModelFiles | None = Field(
        default=None, description="A model that cannot have memorized these captions: scores are what differs from it."
    )
    lora: str | None = Field(
        default=None,
        description="LoRA weights that are added to the model's: a .safetensors file, or a folder that PEFT wrote.",
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
    out: str = Field(default="run", description="The run: a folder or any URI that pyarrow opens.")

    @model_validator(mode="after")
    def _embedders_have_weights(self) -> Config:
        for name in self.confirm.embedders if self.images else []:
            if getattr(self.confirm, name) is None:
                raise ValueError(f"confirm.embedders names {name}, but there is no confirm.{name}: {{weights: ...}}")
        return self

    def scoring(self) -> tuple[str, ...]:
        """What workers load to score captions."""
        return ("model",) if self.reference_model is None else ("model", "reference_model")

    def fresh_seeds(self) -> list[int]:
        """Seeds that neither screen nor generate has used."""
        first = max(*self.screen.seeds, *self.generate.seeds) + 1
        return list(range(first, first + self.confirm.fresh_seeds))

    def embedder(self, name: str) -> SscdOptions | ClipOptions:
        return getattr(self.confirm, name)
