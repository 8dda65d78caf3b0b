"""The pages hang together: links lead somewhere, the site builds, lines are short, code names pages that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.support.pages import DOCS, GENERATED, PAGES, name_of, prose
from tests.support.paths import ROOT

LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", heading) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_page_that_exists(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if re.match(r"\w+:", link) or target in GENERATED:
            continue
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_line_is_longer_than_120_characters(page: Path) -> None:
    assert not [line for line in page.read_text("utf-8").splitlines() if len(line) > 120]


def test_every_page_has_a_place_in_the_navigation() -> None:
    def listed(item: object) -> set[str]:
        if isinstance(item, str):
            return {item}
        parts = item.values() if isinstance(item, dict) else item
        return {page for part in parts for page in listed(part)}  # type: ignore[union-attr]

    navigation = listed(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert navigation == {page.relative_to(DOCS).as_posix() for page in [*PAGES, *GENERATED] if DOCS in page.parents}


def test_the_code_names_only_pages_that_exist() -> None:
    files = [*(path for top in ("audit", "pipelines", "reports", "tests") for path in (ROOT / top).rglob("*.py"))]
    files += [ROOT / "ray_cluster.yaml", *(DOCS / "cluster").glob("*.yaml")]
    named = {(path, name) for path in files for name in re.findall(r"\bdocs/[\w/-]+\.\w+", path.read_text("utf-8"))}
    assert not {(name_of(path), name) for path, name in named if not (ROOT / name).is_file()} - {
        (name_of(path), name) for path, name in named if ROOT / name in GENERATED
    }


@pytest.mark.slow
def test_the_site_builds_offline_without_a_warning(generate: ModuleType, tmp_path: Path) -> None:
    generate.main()
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # a notice of the theme, not of the pages
    done = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    home = (tmp_path / "site/index.html").read_text("utf-8")
    assert not re.findall(r"""(?:src|href)="https?://(?!arxiv\.org|squidfunk)[^"]+\.(?:js|css|woff2?)""", home)
