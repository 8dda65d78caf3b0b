"""Pydantic models of the section `select` of audit.yaml."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pipelines.configuration.inputs import MOST, Section, Seed


class Budget(Section):
    """How many captions to generate for their scores. A number is short for `captions`."""

    captions: int | None = Field(
        default=None,
        ge=0,
        le=MOST,
        description="Number of captions, highest scores first (default: 1,000 or 0.1 % of all captions, whichever is "
        "larger).",
    )
    fdr: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="All captions whose q_unseen is at most this, instead of a number: at most this share of them is "
        "expected to score as high as captions that the model was never trained on.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Budget:
        if self.captions is not None and self.fdr is not None:
            raise ValueError("give captions or fdr, not both")
        return self


class Until(Section):
    """When to stop sampling before `audit_sample` is used up. The text `5000 per million` is short for it."""

    per_million: float = Field(
        gt=0,
        lt=1_000_000,
        description="Stop as soon as at most this many per million of the captions outside the budget, or more than "
        "this many, would be flagged. The bounds hold although they are looked at after every 100 captions.",
    )

    @property
    def share(self) -> float:
        """The same as a share of 1."""
        return self.per_million / 1_000_000


def _rate(given: Any) -> Any:
    if given is None or isinstance(given, dict | Until):
        return given
    match = re.fullmatch(r"([0-9][0-9_,.]*) per million", str(given).strip())
    if match is None:
        raise ValueError("should be a rate such as `5000 per million`")
    return {"per_million": float(match[1].replace(",", "").replace("_", ""))}


def _counted(given: Any) -> Any:
    return given if isinstance(given, dict | Budget) else {"captions": given}


class Select(Section):
    """Which captions to generate."""

    budget: Annotated[Budget, BeforeValidator(_counted, json_schema_input_type=Budget | int | None)] = Budget()
    audit_sample: int = Field(
        default=1000, ge=0, le=MOST, description="Number of captions to draw at random from those outside the budget."
    )
    until: Annotated[Until | None, BeforeValidator(_rate, json_schema_input_type=Until | str | None)] = Field(
        default=None,
        description="A rate such as `5000 per million`, at which sampling stops early (default: the whole sample).",
    )
    seed: Seed | None = Field(
        default=None,
        description="The seed of the random draw (default: derived from the contents of the inputs, so that nobody can "
        "draw until lucky). The claims say so if it is given.",
    )
    perturbation_margin: bool = Field(
        default=False,
        description="Also score eight variants of each selected caption. Costs eight more screens per caption.",
    )

    @model_validator(mode="after")
    def _margins_need_a_fixed_sample(self) -> Select:
        if self.until is not None and self.perturbation_margin:
            raise ValueError("until and perturbation_margin cannot be combined, because margins come before sampling")
        return self
