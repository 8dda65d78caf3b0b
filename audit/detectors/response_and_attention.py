"""Name the parts of a one-sided alternative to `profile`, which are combined after calibration."""

from __future__ import annotations

NAME = "response_and_attention"
PARTS = ("attention_profile", "noise_response_mean")
