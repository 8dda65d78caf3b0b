"""The default detector: both profiles. They are combined after calibration, not before (docs/design.md, section 3)."""

from __future__ import annotations

NAME = "profile"
PARTS = ("attention_profile", "noise_profile")
