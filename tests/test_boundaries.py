"""Who may import whom (docs/design.md, section 1)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FORBIDDEN = {
    "audit": {"pipelines", "reports", "benchmarks", "ray", "duckdb"},
    "reports": {"pipelines", "benchmarks", "ray", "torch"},
    "pipelines": {"benchmarks"},
}
SHARED_WITH_REPORTS = {"audit.schema", "audit.errors"}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; `from audit import schema` counts as audit.schema."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / package).rglob("*.py")
        for module in imports(path)
        if module.split(".")[0] in FORBIDDEN[package]
    }
    assert not wrong


def test_reports_knows_the_schemas_and_errors_of_audit_and_nothing_else_of_it() -> None:
    modules = {module for path in (ROOT / "reports").rglob("*.py") for module in imports(path)}
    of_audit = {module for module in modules if module.split(".")[0] == "audit"}
    assert {".".join(module.split(".")[:2]) for module in of_audit} <= SHARED_WITH_REPORTS
