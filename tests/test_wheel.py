"""The wheel works on its own: built, installed in a fresh environment, run outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel, which sees this one's packages but not the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    [site] = (folder / "venv").glob("lib/*/site-packages")
    # Only the path, not the .pth files in it: the checkout is an editable install of the outer environment.
    (site / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def run(environment: Path, *arguments: str) -> str:
    """What `crossaudit` of the wheel prints, outside the checkout."""
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [environment / "venv/bin/crossaudit", *arguments], cwd=environment, env=clean, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_installed_command_tells_its_version(environment: Path) -> None:
    assert run(environment, "--version").split() == ["crossaudit", "0.1.0"]


@pytest.mark.slow
def test_package_data_comes_along(environment: Path) -> None:
    run(environment, "init", "audit.yaml")
    assert "calibration" in run(environment, "config", "audit.yaml")


@pytest.mark.slow
def test_a_tiny_audit_of_the_bundled_model(environment: Path) -> None:
    [images] = environment.glob("venv/lib/*/site-packages/pipelines/demo/bundle/images/00004.tar")
    tiny = {
        "captions.sample": 60,
        "images.path": images,
        "images.join_on": "none",
        "select.budget": 3,
        "select.audit_sample": 3,
        "generate.steps": 2,
        "engine.workers": 0,
        "confirm.embedders": "[sscd]",
        "confirm.control_captions": 10,
        "confirm.control_rate": 0.2,
        "confirm.fresh_seeds": 1,
    }
    settings = [part for name, value in tiny.items() for part in ("--set", f"{name}={value}")]
    assert "ground truth" in run(environment, "demo", "--out", "run", *settings)
    assert (environment / "run/report.html").is_file()
    assert "WRONG" not in run(environment, "check", "run")
