"""A run opened in Python."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import reports
from audit.errors import AuditError
from tests.support.changed_run import change_manifest, change_table
from tests.support.paths import ROOT


def test_tables_and_views_are_attributes(run: Path) -> None:
    with reports.open_run(run) as audit_run:
        assert audit_run.verdicts.arrow().num_rows == 318
        frame = audit_run.near_misses.df()
        assert len(frame) == 60
        assert frame["gap"].is_monotonic_increasing
        assert {"verdicts", "cases", "sql", "show"} <= set(dir(audit_run))
        assert "caption" in repr(audit_run.captions)
        with pytest.raises(AttributeError, match="no table 'verdict'.*verdicts"):
            audit_run.verdict  # noqa: B018


def test_values_are_passed_as_parameters(run: Path, hostile: str) -> None:
    with reports.open_run(run) as audit_run:
        found = audit_run.sql("select verdict from verdicts where caption = $caption", caption=hostile)
        assert found is not None
        assert found.arrow().to_pylist() == [{"verdict": "verbatim"}]


def test_a_statement_without_a_result_gives_none(run: Path) -> None:
    with reports.open_run(run) as audit_run:
        assert audit_run.sql("-- nothing") is None


def test_a_run_is_read_only_and_a_wrong_statement_says_what_duckdb_says(run: Path, tmp_path: Path) -> None:
    with reports.open_run(run) as audit_run:
        with pytest.raises(AuditError, match="disabled by configuration"):
            audit_run.sql(f"copy captions to '{tmp_path}/stolen.csv'")
        with pytest.raises(AuditError, match="syntax error"):
            audit_run.sql("selec 1")


@pytest.mark.parametrize("read", ["df", "arrow", "__repr__"])
def test_a_damaged_part_is_named(own_run: Path, read: str) -> None:
    with reports.open_run(own_run) as audit_run:
        part = own_run / "verdicts/00001.parquet"
        part.write_bytes(part.read_bytes()[:-50])
        with pytest.raises(AuditError, match=r"00001\.parquet"):
            getattr(audit_run.verdicts, read)()


def test_a_caption_is_shown_with_its_pictures_and_escaped(run: Path, hostile: str, bidi: str) -> None:
    with reports.open_run(run) as audit_run:
        shown = audit_run.show(hostile)
        page = shown._repr_html_()
        assert shown.verdict["verdict"] == "verbatim"
        assert [row["seed"] for row in shown.generations] == [1, 11, 12, 13, 14]
        assert page.count("<img") == 6  # five generations and the image that they copied
        assert "4 of 4 fresh seeds copied again" in page
        assert "<script" not in page
        assert "\u202e" not in audit_run.show(bidi)._repr_html_()
        assert "\u202e" not in repr(audit_run.show(bidi))


def test_an_image_of_several_dataset_rows_is_shown_once(own_run: Path, hostile: str) -> None:
    for part in sorted((own_run / "evidence").iterdir()):
        table = pq.read_table(part)
        pq.write_table(pa.concat_tables([table, table]), part)
    with reports.open_run(own_run) as audit_run:
        assert len(audit_run.show(hostile).images) == 1


def test_training_images_are_blurred_unless_the_run_shows_them(own_run: Path, hostile: str) -> None:
    pages = {}
    for shows in (False, True):
        change_manifest(own_run, resolved__report={"show_training_images": shows})
        with reports.open_run(own_run) as audit_run:
            pages[shows] = audit_run.show(hostile)._repr_html_()
    sources = {shows: set(re.findall(r'src="([^"]+)"', page)) for shows, page in pages.items()}
    assert len(sources[True] - sources[False]) == 1  # the training image; generations are never blurred
    assert ("training image, blurred" in pages[False], "blurred" in pages[True]) == (True, False)


def test_an_unconfirmed_caption_shows_how_far_its_best_match_is_below_the_threshold(run: Path) -> None:
    with reports.open_run(run) as audit_run:
        best = audit_run.near_misses.arrow().to_pylist()[0]
        shown = audit_run.show(best["caption_id"])
        assert (shown.verdict["caption"], shown.gap) == (best["caption"], best["gap"])
        assert f"{best['gap']:.2f} below the threshold" in shown._repr_html_()


def test_pictures_that_the_run_does_not_keep_are_said_to_be_missing(own_run: Path, hostile: str) -> None:
    change_table(own_run, "generations", lambda row: row | {"image": None})
    change_table(own_run, "evidence", lambda row: row | {"image": None})
    with reports.open_run(own_run) as audit_run:
        page = audit_run.show(hostile)._repr_html_()
        assert page.count("not kept by the run") == 6
        assert "<img" not in page


def test_a_caption_that_the_run_has_not_is_refused(run: Path) -> None:
    with reports.open_run(run) as audit_run, pytest.raises(AuditError, match="no caption 'of nobody'"):
        audit_run.show("of nobody")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"no manifest\.json"):
        reports.open_run(tmp_path)


def test_importing_reports_is_light() -> None:
    heavy = "import sys, reports; print([m for m in ('duckdb', 'pyarrow', 'jinja2', 'PIL') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.strip() == "[]"


def test_the_tables_are_those_of_the_files(run: Path) -> None:
    with reports.open_run(run) as audit_run:
        for table in ("verdicts", "captions"):
            assert audit_run.sql(f"from {table}").arrow() == pq.read_table(run / table)  # type: ignore[union-attr]
