"""Score the mean response of the predicted noise over eight timesteps, one-sided (our own detector)."""

from __future__ import annotations

from dataclasses import replace

from audit.detectors.noise_profile import DETECTOR as NOISE_PROFILE

# The score is the mean, over the eight timesteps of `noise_profile`, of the robust z-scores of the log response against
# control captions (`audit.calibration.distance`). `noise_profile` scores the same column by a two-sided distance.
DETECTOR = replace(
    NOISE_PROFILE,
    name="noise_response_mean",
    cost="none beside noise_profile",
    distance="larger",
    measured_by="noise_profile",
)
