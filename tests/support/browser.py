"""Start the browser of this machine, for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
MISSING = (
    "no browser was found: install Chromium or Chrome (`apt install chromium`), "
    "or run `.venv/bin/playwright install --with-deps chromium`"
)


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium without a window. The test is skipped where no browser is installed, but fails in CI."""
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next(filter(None, map(shutil.which, NAMES)), own if Path(own).exists() else None)
        if path is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
        # Containers lack the namespaces that the sandbox needs. The pages are our own.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield started
        finally:
            started.close()
