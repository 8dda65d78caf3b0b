"""A run that is still working, or that stopped, can be looked at whatever it has written so far."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest

from audit.record.ledger import Ledger
from pipelines.console.numbers import now
from pipelines.engine.manifest import read
from pipelines.ui.progress import Progress, progress
from pipelines.ui.server import UiServer
from reports.query import query
from reports.record.source import Source
from reports.views import connect
from tests.support.changed_run import change_manifest
from tests.support.serving import ask, serving

JUDGED = ("verdicts", "copied_images", "evidence")
# What is on disk when the stage of that name begins.
BEFORE = {
    "ingest": (),
    "screen": ("rows", "captions", "caption_groups", "errors"),
    "confirm": ("rows", "captions", "caption_groups", "errors", "screen", "scores", "generations"),
}


def of(run: Path | str) -> Progress:
    with connect(run) as connection:
        return progress(Source(connection, read(str(run)), str(run)), Ledger(str(run)))


@pytest.fixture
def run(attacked_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(attacked_run, tmp_path / "run"))


def working(run: Path, stage: str, kept: tuple[str, ...], **changes: Any) -> None:
    """Make a run look as if it had got as far as a stage."""
    for folder in run.iterdir():
        if folder.is_dir() and folder.name not in kept:
            shutil.rmtree(folder)
    (run / "report.html").unlink()
    parts = {name: found for name, found in json.loads((run / "manifest.json").read_text())["parts"].items()}
    parts = {name: found for name, found in parts.items() if name in kept}
    change_manifest(run, finished=None, claims={}, parts=parts, progress={"at": now(), "stage": stage}, **changes)


@pytest.mark.parametrize("stage", BEFORE)
def test_every_page_of_a_half_written_run_is_shown(run: Path, stage: str) -> None:
    working(run, stage, BEFORE[stage], thresholds={})
    found = of(run)
    assert (found.state, found.works, found.confirmed) == ("running", True, None)
    assert found.sentence.startswith(f"running: {stage}")
    captions = query(run, "select caption_id from captions")["caption_id"].to_pylist()
    server = UiServer(str(run))
    with serving(server):
        for path in ("", "progress", "captions", "image", "sql", *(f"caption?id={id_}" for id_ in captions[:2])):
            assert ask(server, path).status == 200, path
        assert "the run has no report yet" in ask(server, "report.html").text
        assert f"{len(captions)} captions" in ask(server, "captions").text


def test_what_is_confirmed_so_far_is_what_the_run_will_say(run: Path) -> None:
    """Before `judge`, copies follow from the matches and the thresholds."""
    verdict_of = {
        row["caption_id"]: row["verdict"]
        for row in query(run, "from verdicts where verdict in ('verbatim', 'partial')").to_pylist()
    }
    tables = {path.name for path in run.iterdir() if path.is_dir()}
    working(run, "judge", tuple(tables - set(JUDGED)))
    found = of(run)
    assert found.confirmed is not None
    assert {row["caption_id"]: row["copy_type"] for row in found.confirmed} == verdict_of
    assert found.confirmed_count == len(verdict_of) == 16
    assert (found.verdicts, found.claims) == ({}, [])


def test_a_finished_run_shows_verdicts_claims_and_errors(attacked_run: Path) -> None:
    found = of(attacked_run)
    assert (found.state, found.works) == ("finished", False)
    assert found.verdicts["verbatim"] == 9
    assert sum(found.verdicts.values()) == 318
    assert found.claims
    assert {cause["stage"] for cause in found.causes} == {"embed", "generate", "ingest"}
    assert [stage["rate"] for stage in found.stages if stage["stage"] == "screen"] == ["5/s"]


def test_a_run_that_stopped_says_why(run: Path) -> None:
    working(run, "screen", BEFORE["screen"], failed={"at": now(), "message": "<b>no memory</b>"})
    assert (of(run).state, of(run).works) == ("stopped", False)
    server = UiServer(str(run))
    with serving(server):
        assert "&lt;b&gt;no memory&lt;/b&gt;" in ask(server, "").text


def test_damage_is_named(run: Path) -> None:
    server = UiServer(str(run))
    with serving(server):
        part = next((run / "captions").iterdir())
        part.write_bytes(b"torn")
        answer = ask(server, "captions")
        assert answer.status == 500
        assert f"{part}: this part of the run is damaged" in answer.text
        (run / "manifest.json").write_text("{")
        assert "not JSON, or damaged" in ask(server, "").text


def test_a_run_in_an_object_store_is_read_there(attacked_run: Path) -> None:
    fsspec.filesystem("memory").put(str(attacked_run), "/ui-run", recursive=True)
    server = UiServer("memory://ui-run")
    with serving(server):
        assert "finished at" in ask(server, "").text
        assert "318 captions" in ask(server, "captions").text
        assert ask(server, "report.html").status == 200
