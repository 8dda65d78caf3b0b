from __future__ import annotations

import pytest

import audit
from audit.calibration.screening import screen_as
from audit.errors import AuditError

CONTROL = [f"a {look} {thing}" for look in ("red", "blue", "old", "wet") for thing in "abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def calibration(small: audit.Model) -> audit.Calibration:
    table = audit.screen(small, CONTROL, [4, 9], ["noise_magnitude"], batch_size=100, resolution=16)
    return audit.calibrate(table, "noise_magnitude")


def test_captions_are_screened_as_the_control_captions_were(small: audit.Model, calibration: audit.Calibration) -> None:
    found = screen_as(calibration, small, ["a dog"])
    assert found.equals(audit.screen(small, ["a dog"], [4, 9], ["noise_magnitude"], resolution=16), check_metadata=True)
    assert len(calibration.score(found)) == 1


def test_a_calibration_of_another_resolution_is_refused(small: audit.Model, calibration: audit.Calibration) -> None:
    table = audit.screen(small, ["a dog"], [4, 9], ["noise_magnitude"])
    message = r"latent shape is \[4, 16, 16\] in the table, \[4, 8, 8\] in the calibration(?s:.)*screen.resolution"
    with pytest.raises(AuditError, match=message):
        calibration.score(table)
