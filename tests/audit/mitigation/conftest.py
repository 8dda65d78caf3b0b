"""The toy model at 16 x 16 pixels: the smallest UNet that has every kind of cross-attention layer."""

from __future__ import annotations

import pytest

import audit
from tests.support.toy import MODEL


@pytest.fixture(scope="session")
def model() -> audit.Model:
    return audit.load_model(MODEL, resolution=16)
