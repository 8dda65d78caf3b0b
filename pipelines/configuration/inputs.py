"""Pydantic models of the sections of audit.yaml that name what is given: model, captions, images, control captions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds must be distinct")
    return seeds


Seed = Annotated[int, Field(ge=0, lt=2**63)]
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)]
Rate = Annotated[float, Field(gt=0, lt=1)]
# A larger number of rows or files must be a typo. This limit fits in 64 bits, with room for sums.
MOST = 10**15


class Section(BaseModel):
    """The base of all sections: unknown keys are refused, and types are strict."""

    # Strict: neither `true` nor a string is accepted as a number.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _paths(value: Any) -> Any:
    """Expand a bare path, or a list of paths, to {path: ...}."""
    return {"path": value} if isinstance(value, str | list) else value


def _path(value: Any) -> Any:
    """Expand a bare path to {path: ...}."""
    return {"path": value} if isinstance(value, str) else value


def _listed(value: Any) -> Any:
    """Expand a single item to a list of one item."""
    return [value] if isinstance(value, str | dict) else value


Pixels = Annotated[int, Field(gt=0)]
Resolution = Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)]


class Inversion(Section):
    """A textual inversion: learned embeddings of a token."""

    path: str = Field(
        description="File of learned embeddings: .safetensors, or a .pt or .bin file that loads without running code."
    )
    token: str | None = Field(
        default=None, description="The token that captions use for it (default: the token named in the file)."
    )

    _short = model_validator(mode="before")(_path)


class ModelFiles(Section):
    """The files of a model, and how to read them."""

    path: str = Field(
        description="A diffusers folder with safetensors weights, a single .safetensors file of Stable Diffusion 1.x, "
        "2.x or XL in the original layout (a path or a URI), or a hub id."
    )
    resolution: Resolution | None = Field(
        default=None,
        description="Image size in pixels: one number or [height, width] (default: from the UNet's sample_size).",
    )
    prediction_type: Literal["epsilon", "v_prediction"] | None = Field(
        default=None,
        description="What the UNet predicts (default: read from the scheduler's configuration; for a single file, read "
        "from its marker or measured).",
    )
    variant: str | None = Field(
        default=None, description="The variant of the weights, such as fp16 (default: none, or the only one present)."
    )
    config: str | None = Field(
        default=None,
        description="For a single file of another architecture: a diffusers folder with its configuration files and "
        "tokenizers.",
    )
    textual_inversion: Annotated[
        list[Inversion], BeforeValidator(_listed, json_schema_input_type=list[Inversion | str] | Inversion | str)
    ] = Field(default=[], description="Learned embeddings: a list of paths or of {path, token}.")

    _short = model_validator(mode="before")(_path)


class Captions(Section):
    """The captions that the model was trained on."""

    path: str | list[str] = Field(
        description="Parquet, WebDataset tars, JSON lines, CSV, TSV or text: a path, a glob, a brace range, or a list "
        "of these."
    )
    caption: str = Field(
        default="caption",
        description="The column that holds the captions (default: `caption`, or else the only one of text, prompt, "
        "TEXT and Prompt).",
    )
    key: str | None = Field(
        default=None, description="The column that holds the sample keys (default: `key`, if it exists)."
    )
    url: str | None = Field(
        default=None, description="The column that holds the source URLs (default: `url`, if it exists)."
    )
    delimiter: str | None = Field(
        default=None,
        min_length=1,
        max_length=1,
        description="The delimiter of CSV files (default: the one that the header line uses).",
    )
    sample: int | None = Field(
        default=None, gt=0, le=MOST, description="Number of rows to draw at random (default: all rows)."
    )
    seed: Seed = Field(default=0, description="The seed of the random draw.")

    _short = model_validator(mode="before")(_paths)


class Images(Section):
    """The images that the model was trained on."""

    path: str | list[str] = Field(
        description="WebDataset tars, Parquet files with image bytes, or image files: paths, folders or globs."
    )
    column: str = Field(default="image", description="The column that holds the image bytes in Parquet files.")
    join_on: Literal["stem_key", "key", "none"] = Field(
        default="stem_key",
        description="How to match a caption with its image: by file stem and key, by key alone, or not at all.",
    )
    crop: Literal["none", "centre"] = Field(
        default="none", description="How training cropped the images: not at all, or to the largest centre square."
    )

    min_paired: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="The smallest fraction of rows that must have an image of their own; below it the run stops "
        "(unless join_on is none, or all captions are plain text, which cannot name images).",
    )
    exif: Literal["apply", "ignore", "both"] = Field(
        default="both",
        description="Whether training applied the EXIF orientation of the files, or ignored it and saw the pixels as "
        "stored. both: compare each image both ways and use the better match.",
    )

    _short = model_validator(mode="before")(_paths)


class ControlCaptions(Section):
    """The control captions: captions that the model was never trained on."""

    captions: str = Field(description="Captions never trained on: a text file with one caption per line, or Parquet.")
    column: str = Field(
        default="caption",
        description="The caption column, if the file has columns (default: as for `captions.caption`).",
    )
    screen: str | None = Field(
        default=None, description="Their precomputed screen table (a Parquet file from `audit.screen`)."
    )
    pairs: str | list[str] | None = Field(
        default=None,
        description="Held-out pairs of a caption and an image that the model was never trained on: WebDataset tars or "
        "Parquet files with image bytes. They measure how often a caption is confirmed because its generation merely "
        "resembles its own image.",
    )
    accept_unlike: bool = Field(
        default=False,
        description="Go on with control captions that are unlike the dataset, and withhold all p-values.",
    )
