"""The files around the code agree with it: extras, versions, the image, the citation."""

from __future__ import annotations

import ast
import re
import sys
import tomllib

import yaml

from pipelines.extras import MODULES
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
# Where a module has another name than its distribution.
DISTRIBUTIONS = {
    "PIL": "pillow",
    "faiss": "faiss-cpu",
    "open_clip": "open_clip_torch",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
# Imported by `audit` where they are used; a run brings them.
OF_A_RUN = {"faiss-cpu", "open_clip_torch", "pydantic", "torchvision"}
# Comes with transformers and diffusers.
INDIRECT = {"huggingface_hub"}
# `pip freeze` leaves these out.
UNPINNED = {"setuptools", "wheel"}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=~! ]", requirement)[0] for requirement in requirements}


CORE, RUN = names(PROJECT["dependencies"]), names(PROJECT["optional-dependencies"]["run"])


def imported(top: str) -> set[str]:
    """The distributions that the modules of a package import, anywhere in them."""
    found = set()
    for path in (ROOT / top).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    found -= {*sys.stdlib_module_names, "audit", "pipelines", "reports", "yaml"}
    return {DISTRIBUTIONS.get(name, name) for name in found}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_serving_and_training_need_neither_ray_nor_duckdb() -> None:
    assert not CORE & {"ray", "duckdb"}
    assert {"ray", "duckdb"} <= RUN


def test_the_core_install_has_all_that_audit_imports() -> None:
    assert imported("audit") - OF_A_RUN - INDIRECT <= CORE


def test_the_command_line_knows_the_modules_that_an_install_for_runs_adds() -> None:
    assert {DISTRIBUTIONS.get(name, name) for name in MODULES} == RUN


def test_an_install_for_runs_has_all_that_is_imported() -> None:
    assert imported("pipelines") | imported("reports") | OF_A_RUN <= CORE | RUN | INDIRECT


def test_the_lock_file_pins_every_dependency_and_names_no_local_path() -> None:
    known = {name.lower().replace("_", "-") for name in pinned()}
    declared = CORE.union(RUN, names(PROJECT["optional-dependencies"]["dev"]))
    assert {name.lower().replace("_", "-") for name in declared - UNPINNED} <= known
    assert "file:" not in (ROOT / "constraints.txt").read_text("utf-8")


def test_the_image_has_the_ray_that_was_tested_and_that_the_job_for_kubernetes_names() -> None:
    bases = re.findall(r"FROM rayproject/ray:([\d.]+)-py311-(\w+) AS (\w+)", (ROOT / "Dockerfile").read_text("utf-8"))
    assert {version for version, _, _ in bases} == {pinned()["ray"]}
    assert {name for _, _, name in bases} == {"cpu", "cuda"}
    job, _ = yaml.safe_load_all((ROOT / "docs/cluster/rayjob.yaml").read_text("utf-8"))
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned()["ray"]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == PROJECT["version"]
    assert citation["references"][0]["authors"][0]["family-names"] == "Ren"
