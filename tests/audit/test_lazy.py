from __future__ import annotations

import json
import subprocess
import sys

import pytest

import audit

# In this order, one process can import all: no later module must do without what an earlier one may import.
HEAVY = {
    "pipelines.cli": ("torch", "diffusers", "ray", "scipy", "pyarrow"),
    "audit.schema": ("torch", "diffusers", "ray", "scipy"),
    "pipelines.configuration.settings": ("torch", "diffusers", "ray", "scipy"),
    "pipelines.engine.remote_worker": ("torch", "diffusers", "scipy", "pyarrow.dataset", "pandas"),
    "pipelines.runs.audit": ("torch", "diffusers", "scipy"),
    "audit.detectors": ("torch", "diffusers", "sklearn"),
    "audit.calibration.calibration": ("torch", "diffusers", "sklearn"),
    "pipelines.runs.recomputed_results": ("torch", "diffusers", "sklearn"),
    "pipelines.runs.evaluate": ("torch", "diffusers"),
    "audit.embedding.floors": ("torch",),
}


def test_what_a_module_does_not_need_is_not_imported() -> None:
    code = f"""
import importlib, json, sys
imported = {{}}
for module, heavy in {HEAVY}.items():
    importlib.import_module(module)
    imported[module] = [name for name in heavy if name in sys.modules]
print(json.dumps(imported))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == dict.fromkeys(HEAVY, [])


def test_every_public_name_is_there() -> None:
    for name in audit.__all__:
        assert getattr(audit, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        audit.nonsense  # noqa: B018
