"""Name the parts of `profile`, which are combined after calibration (docs/explanation/method.md)."""

from __future__ import annotations

NAME = "profile"
PARTS = ("attention_profile", "noise_profile")
