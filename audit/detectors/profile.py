"""Name the parts of the default detector, which are combined after calibration (docs/design.md, section 3)."""

from __future__ import annotations

NAME = "profile"
PARTS = ("attention_profile", "noise_profile")
