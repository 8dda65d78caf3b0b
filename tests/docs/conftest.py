"""The program that writes the reference pages."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from tests.support.pages import DOCS


@pytest.fixture(scope="session")
def generate() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
