"""The steps of the page on adding a detector work as they are written."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

import audit
from audit import detectors, schema
from audit.calibration import calibration
from tests.support.pages import DOCS, blocks
from tests.support.toy import CONTROL_CAPTIONS, MODEL

PAGE = DOCS / "how-to/add-a-detector.md"


@pytest.mark.slow
def test_the_detector_of_the_page_screens_and_is_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    file, register, declare, use = (block.text for block in blocks(PAGE) if block.language == "python")
    monkeypatch.setattr(detectors, "SCREEN", dict(detectors.SCREEN))
    monkeypatch.setattr(schema, "DETECTOR_COLUMNS", dict(schema.DETECTOR_COLUMNS))

    response_mean = ModuleType("audit.detectors.response_mean")
    exec(compile(file, str(PAGE), "exec"), response_mean.__dict__)
    monkeypatch.setitem(sys.modules, response_mean.__name__, response_mean)
    exec(declare, vars(schema))
    exec(register, {"SCREEN": detectors.SCREEN, "response_mean": response_mean})
    monkeypatch.setattr(detectors, "NAMES", (*detectors.NAMES, "response_mean"))
    for module in (detectors, calibration):  # each holds the tuple under its own name
        monkeypatch.setattr(module, "SCORES", (*module.SCORES, "response_mean"))
    found = {"audit": audit, "model": audit.load_model(MODEL), "captions": ["a lamp", "a river"]}
    found["control_captions"] = CONTROL_CAPTIONS
    exec(use, found)

    assert found["table"].column_names == ["caption", "seed", "prompt_tokens", "response_mean", "status", "error"]
    assert np.isfinite(found["scores"]["score"].to_numpy()).all()
    assert ((found["scores"]["p_unseen"].to_numpy() > 0) & (found["scores"]["p_unseen"].to_numpy() <= 1)).all()


def test_the_page_registers_and_declares_what_its_file_defines() -> None:
    file, register, declare, _ = (block.text for block in blocks(PAGE) if block.language == "python")
    assert 'name="response_mean"' in file
    assert 'SCREEN["response_mean"]' in register
    assert 'DETECTOR_COLUMNS["response_mean"]' in declare
