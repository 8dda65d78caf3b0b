"""Runs to look at, and their pages served in this process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from pipelines.ui.server import UiServer
from reports.html import write
from tests.support.changed_run import change_table
from tests.support.hostile import ATTACKS
from tests.support.report_run import build
from tests.support.serving import serving


@pytest.fixture(scope="session")
def attacked_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 318 captions, many of which attack the pages. Tests must not change it."""
    root = tmp_path_factory.mktemp("attacked") / "run"
    build(root)
    attacks = cycle(ATTACKS)
    text_of: dict[str, str] = {}

    def attack(row: dict[str, Any]) -> dict[str, Any]:
        number = row["caption"].removeprefix("ordinary caption number ")
        if number.isdigit() and int(number) < 40:
            row["caption"] = text_of.setdefault(row["caption_id"], next(attacks))
        return row

    for table in ("captions", "verdicts"):
        change_table(root, table, attack)
    change_table(root, "rows", lambda row: row | {"key": next(attacks), "url": next(attacks)})
    change_table(root, "errors", lambda row: row | {"message": next(attacks)})
    write(root)
    return root


@pytest.fixture(scope="session")
def attacked(attacked_run: Path) -> Iterator[UiServer]:
    """The pages of that run."""
    server = UiServer(str(attacked_run))
    with serving(server):
        yield server
