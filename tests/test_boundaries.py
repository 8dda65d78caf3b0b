"""Who may import whom: the layers, and no cycle of modules or of rooms (docs/explanation/architecture.md)."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("audit", "pipelines", "reports")
FORBIDDEN = {
    "audit": {"pipelines", "reports", "benchmarks", "ray", "duckdb"},
    "reports": {"pipelines", "benchmarks", "ray", "torch"},
    "pipelines": {"benchmarks"},
}
SHARED_WITH_REPORTS = {"audit.schema", "audit.errors", "audit.durations", "audit.record", "audit.statistics"}


@cache
def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; `from audit import schema` counts as audit.schema."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@cache
def modules() -> dict[str, Path]:
    """The files of the packages by module name, without the package files, which hold no code of their own."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}


@cache
def graph() -> dict[str, set[str]]:
    """The modules that each module imports, at any level and for types too."""
    known = modules()

    def module_of(name: str) -> set[str]:
        return {name} & known.keys() or {name.rpartition(".")[0]} & known.keys()

    return {module: {found for name in imports(path) for found in module_of(name)} for module, path in known.items()}


def room_of(module: str) -> str:
    """A module's package, or the module itself at the top level of one."""
    parts = module.split(".")
    return ".".join(parts[:2])


def in_order(edges: Mapping[str, set[str]]) -> list[str]:
    """Sort so that everything stands behind what it imports. Raises CycleError, which names a cycle."""
    return list(TopologicalSorter(edges).static_order())


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / package).rglob("*.py")
        for module in imports(path)
        if module.split(".")[0] in FORBIDDEN[package]
    }
    assert not wrong


def test_the_core_needs_no_pydantic() -> None:
    """It belongs to the extra `run`. Only the manifest needs it, which nothing else of audit imports."""
    manifest = {"audit.record.manifest", "audit.record.manifest_entries"}
    of_audit = {module: path for module, path in modules().items() if module.startswith("audit.")}
    needing = {
        module for module, path in of_audit.items() if any(name.split(".")[0] == "pydantic" for name in imports(path))
    }
    assert needing == manifest
    edges = graph()
    assert not [module for module in of_audit.keys() - manifest if edges[module] & manifest]


def test_reports_imports_little_of_audit() -> None:
    known = {module for path in (ROOT / "reports").rglob("*.py") for module in imports(path)}
    of_audit = {module for module in known if module.split(".")[0] == "audit"}
    assert {room_of(module) for module in of_audit} <= SHARED_WITH_REPORTS


def test_no_modules_import_each_other_in_a_cycle() -> None:
    assert len(in_order(graph())) == len(modules())


def test_no_rooms_import_each_other_in_a_cycle() -> None:
    edges: dict[str, set[str]] = {}
    for module, imported in graph().items():
        edges.setdefault(room_of(module), set()).update(room_of(other) for other in imported)
    in_order({room: others - {room} for room, others in edges.items()})


def test_only_the_runs_know_the_stages() -> None:
    stages = "pipelines.stages."
    knowing = {module for module, imported in graph().items() if any(other.startswith(stages) for other in imported)}
    assert {room_of(module) for module in knowing} == {"pipelines.runs"}


def test_test_files_share_helpers_through_support_alone() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} imports {module}"
        for path in (ROOT / "tests").rglob("*.py")
        for module in imports(path)
        if module.startswith("tests.") and not module.startswith("tests.support.")
    }
    assert not wrong
