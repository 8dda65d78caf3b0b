from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit import schema
from reports.check import check
from reports.html import render
from reports.query import query
from reports.record.build import build
from reports.record.mitigation import best_of
from reports.stored_run import locate
from reports.views import connect
from tests.support.faulty import Faulty
from tests.support.markup import Tags, text_of
from tests.support.report_record import without_figures
from tests.support.report_run import HOSTILE, picture
from tests.support.toy import encode

PLAIN, MILD, STRONG = ("none", ""), ("rescale", "bos_scale=1.25, keep=eos"), ("rescale", "bos_scale=4.0, keep=eos")
SHARE = {PLAIN: 1.0, MILD: 0.5, STRONG: 0.0}
CLIP = {PLAIN: 0.31, MILD: 0.305, STRONG: 0.2}


def mitigate(run: Path, clip: bool = True) -> None:
    """The tables and the manifest of a run after `crossaudit mitigate`."""
    verdicts = query(run, "select * from verdicts").to_pylist()
    confirmed = [row for row in verdicts if row["verdict"] in ("verbatim", "partial")]
    ordinary = [row for row in verdicts if row["verdict"] == "not_selected"][:2]
    summary: list[dict[str, Any]] = []
    measured: list[dict[str, Any]] = []
    for caption_set, captions in (("confirmed", confirmed), ("ordinary", ordinary)):
        for method, settings in SHARE:
            setting = {"caption_set": caption_set, "method": method, "settings": settings}
            share = SHARE[method, settings] if caption_set == "confirmed" else 0.0
            counts = {"captions": len(captions), "images": len(captions), "captions_above": int(share * len(captions))}
            counts["captions_near"] = 0
            interval = {"share_above": share, "share_above_low": share / 2, "share_above_high": (1 + share) / 2}
            score = CLIP[method, settings] if clip else None
            figures = {"median_similarity": share, "clip_score": score, "diversity": 0.5, "seconds_per_image": 0.2}
            summary.append(setting | counts | interval | figures)
            for n, row in enumerate(captions):
                copied = n < share * len(captions)
                known = {name: row[name] for name in ("caption_id", "caption", "verdict", "image_id")}
                values = {"seed": 1, "similarity": 0.9 if copied else 0.2, "is_copy": copied}
                measured.append(setting | known | values | {"image": encode(picture(n)) if n < 14 else None})
    manifest = json.loads((run / "manifest.json").read_text())
    for table, rows, layout in (
        ("mitigation", measured, schema.MITIGATION),
        ("mitigation_summary", summary, schema.MITIGATION_SUMMARY),
    ):
        (run / table).mkdir()
        pq.write_table(pa.Table.from_pylist(rows, schema=layout), run / table / "00000.parquet")
        manifest["parts"][table] = {"00000.parquet": len(rows)}
    manifest["mitigation"] = {"seeds": [1], "clip": None, "confirmed": 14, "ordinary": 6, "captions_sha256": "12" * 32}
    (run / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def mitigated_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run after `crossaudit mitigate`, which tests must not change."""
    copied = Path(shutil.copytree(run, tmp_path_factory.mktemp("mitigated") / "run"))
    mitigate(copied)
    return copied


@pytest.fixture(scope="module")
def found(mitigated_run: Path) -> str:
    """The section of its report."""
    return section(render(without_figures(build(mitigated_run))))


def section(page: str) -> str:
    [found] = [part for part in page.split("<section>") if '<h2 id="mitigation">' in part]
    return found


def test_a_run_without_it_has_no_section(page: str) -> None:
    assert '<h2 id="mitigation">' not in page


def test_the_section_has_a_row_a_setting_and_the_trade_off(found: str) -> None:
    text = text_of(found)
    assert "Without mitigation, 16 of 16 confirmed captions are copied." in text
    assert "With rescale (bos_scale=1.25, keep=eos), 8 of 16 are." in text
    assert "no mitigation 16 of 16 0 50.0% to 100.0% 1.000 0.310 0.500 0.310 0.500 0.200" in text
    assert "rescale (bos_scale=4.0, keep=eos) 0 of 16" in text
    assert [tag for tag, attributes in Tags(found).tags if "Copies that remain" in (attributes.get("aria-label") or "")]


def test_at_most_twelve_confirmed_captions_are_shown_with_three_images_and_ordinary_ones_with_two(found: str) -> None:
    assert found.count("<article") == 12 + 2
    names = [attributes["alt"] for tag, attributes in Tags(found).tags if tag == "img"]
    assert names.count("training image") == 12
    assert names.count("generated without mitigation") == names.count("generated with mitigation") == 14
    assert text_of(found).count("still a copy") > 0


def test_a_hostile_caption_is_shown_as_text(found: str) -> None:
    assert "<script" not in found
    assert HOSTILE in text_of(found)


def test_without_clip_scores_there_is_no_figure_and_it_says_how_to_get_one(own_run: Path) -> None:
    mitigate(own_run, clip=False)
    text = text_of(section(render(without_figures(build(own_run)))))
    assert "--clip DIR" in text
    assert "The trade-off" not in text
    assert "bos_scale=4.0, keep=eos), 0 of 16 are. This is the lowest number among all settings." in text


def setting(method: str, settings: str, share_above: float, ordinary_clip: float | None) -> dict[str, Any]:
    return {"method": method, "settings": settings, "share_above": share_above, "ordinary_clip": ordinary_clip}


@pytest.mark.parametrize(
    ("settings", "best"),
    [
        ([("none", "", 1.0, 0.3), ("rescale", "2", 0.5, 0.295), ("rescale", "4", 0.1, 0.2)], ("rescale", "2")),
        (
            [("none", "", 1.0, 0.3), ("rescale", "2", 0.5, 0.2), ("rescale", "4", 0.1, 0.1)],
            ("rescale", "4"),
        ),  # all cost too much
        ([("none", "", 1.0, None), ("rescale", "2", 0.5, None), ("rescale", "4", 0.1, None)], ("rescale", "4")),
        ([("none", "", 1.0, 0.3), ("rescale", "2", 0.1, 0.30), ("padding", "4", 0.1, 0.31)], ("padding", "4")),
        ([("none", "", 1.0, 0.3), ("rescale", "4", 0.1, 0.3), ("rescale", "2", 0.1, 0.3)], ("rescale", "2")),
        ([("none", "", 1.0, 0.0), ("rescale", "2", 0.5, 0.0), ("rescale", "4", 0.1, -0.1)], ("rescale", "2")),
    ],
)
def test_the_best_setting_leaves_the_fewest_copies_that_ordinary_captions_can_bear(
    settings: list[Any], best: tuple[str, str]
) -> None:
    found = best_of([setting(*values) for values in settings])
    assert found is not None
    assert (found["method"], found["settings"]) == best


def test_plain_alone_has_no_best() -> None:
    assert best_of([setting("none", "", 1.0, 0.3)]) is None


@pytest.fixture
def faulty(mitigated_run: Path) -> Iterator[Faulty]:
    with connect(mitigated_run) as connection:
        rows = connection.sql("from mitigation").to_arrow_table()
        yield Faulty(connection, {"mitigation": rows}, locate(mitigated_run).manifest())


@pytest.mark.parametrize(
    ("sql", "statement"),
    [
        ("from mitigation where not (settings = 'bos_scale=4.0, keep=eos' and similarity < 0.5 "
         "and caption_set = 'ordinary') "
         "or caption_id = (select min(caption_id) from mitigation where caption_set = 'ordinary')", "same captions"),
        ("from mitigation union all (from mitigation limit 1)", "same captions and seeds"),
        ("from mitigation where settings <> 'bos_scale=4.0, keep=eos'", "one row in `mitigation_summary`"),
        ("from mitigation where seed is null", "one row in `mitigation_summary`"),
        ("select * replace ('some' as method) from mitigation", "mitigation.method has only known values"),
        ("select * replace ('others' as caption_set) from mitigation", "mitigation.caption_set has only known values"),
    ],
)  # fmt: skip
def test_check_sees_what_is_wrong_with_the_table(faulty: Faulty, sql: str, statement: str) -> None:
    faulty.edit("mitigation", lambda rows: faulty.connection.sql(sql).to_arrow_table().cast(schema.MITIGATION))
    assert any(statement in line for line in faulty.failed())


def test_check_finds_nothing_wrong_with_what_was_measured(mitigated_run: Path) -> None:
    assert [result for result in check(mitigated_run) if not result.ok] == []
