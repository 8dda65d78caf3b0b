from __future__ import annotations

import subprocess
import sys

import pytest

import audit


def test_the_schema_alone_imports_no_torch() -> None:
    code = "import sys, audit.schema; print([name for name in ('torch', 'diffusers', 'ray') if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in audit.__all__:
        assert getattr(audit, name).__name__ == name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        audit.nonsense  # noqa: B018
