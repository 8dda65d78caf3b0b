"""The wheel works on its own: built, installed in a fresh environment, run outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.called import crossaudit
from tests.support.paths import ROOT

# Without the checkout.
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel, which sees this one's packages but not the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--skip-dependency-check"]
    subprocess.run([*build, "--outdir", str(folder), str(ROOT)], check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv/bin/python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], env=OUTSIDE, check=True)
    [site] = (folder / "venv").glob("lib/*/site-packages")
    # Only the path, not the .pth files in it: the checkout is an editable install of the outer environment.
    (site / "outer.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder


def run(environment: Path, *arguments: str) -> str:
    """What `crossaudit` of the wheel prints, outside the checkout."""
    done = subprocess.run(
        [environment / "venv/bin/crossaudit", *arguments], cwd=environment, env=OUTSIDE, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_holds_every_file_of_the_packages(environment: Path) -> None:
    [wheel] = environment.glob("*.whl")
    files = [path for top in ("audit", "pipelines", "reports") for path in (ROOT / top).rglob("*") if path.is_file()]
    wanted = {str(path.relative_to(ROOT)) for path in files if path.suffix != ".pyc"}
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()


@pytest.mark.slow
def test_the_installed_command_tells_its_version(environment: Path) -> None:
    assert run(environment, "--version").split() == ["crossaudit", "0.1.0"]


@pytest.mark.slow
def test_a_tiny_audit_of_the_bundled_model(environment: Path) -> None:
    [images] = environment.glob("venv/lib/*/site-packages/pipelines/demo/bundle/images/00004.tar")
    tiny = {
        "captions.sample": 60,
        "images.path": images,
        "images.join_on": "none",
        "select.budget": 1,
        "select.audit_sample": 1,
        "generate.seeds": "[1]",
        "generate.steps": 2,
        "engine.workers": 0,
        "confirm.embedders": "[sscd]",
        "confirm.sscd.min_similarity_duplicate": 0.9,
        "confirm.control_captions": 4,
        "confirm.control_rate": 0.5,
        "confirm.fresh_seeds": 1,
    }
    settings = [part for name, value in tiny.items() for part in ("--set", f"{name}={value}")]
    assert "ground truth" in run(environment, "demo", "--out", "run", *settings)
    assert (environment / "run/report.html").is_file()
    checked = crossaudit("check", environment / "run")
    assert checked.returncode == 0, checked.stdout
