from __future__ import annotations

import subprocess
import sys

import pytest

import audit


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("audit.schema", ("torch", "diffusers", "ray", "scipy")),
        ("pipelines.cli", ("torch", "diffusers", "ray", "scipy", "pyarrow")),
        ("pipelines.engine.remote_worker", ("torch", "diffusers", "scipy", "pyarrow.dataset", "pandas")),
        ("pipelines.configuration.settings", ("torch", "diffusers", "ray", "scipy")),
        ("pipelines.runs.audit", ("torch", "diffusers", "scipy")),
        ("audit.detectors", ("torch", "diffusers", "sklearn")),
        ("audit.calibration.calibration", ("torch", "diffusers", "sklearn")),
        ("pipelines.runs.evaluate", ("torch", "diffusers")),
        ("pipelines.runs.recomputed_results", ("torch", "diffusers", "sklearn")),
        ("audit.embedding.floors", ("torch",)),
    ],
)
def test_what_a_module_does_not_need_is_not_imported(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in audit.__all__:
        assert getattr(audit, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        audit.nonsense  # noqa: B018
