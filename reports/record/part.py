"""Define what all parts of the record have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A part of the record. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")
