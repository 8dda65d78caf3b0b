"""The views of reports/sql, each against its definition computed in Python from the Parquet files."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from reports.exclusions import write_exclusions
from reports.record.source import HOST
from reports.views import VIEWS, connect, definition
from tests.support.changed_run import change_table
from tests.support.pages import DOCS, blocks

Rows = list[dict[str, Any]]
URLS = (
    "https://a.example/1",
    "http://user:pw@B.example:8080/x?y",
    "https://a.example/2",
    None,
    "s3://c/d",
    "not a url",
)
CONFIRMED, RISKS = ("verbatim", "partial"), ("high", "medium", "low")


@pytest.fixture(scope="module")
def varied(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with URLs, tied scores, confirmed captions in the audit sample, regions, and a second detector."""
    root: Path = shutil.copytree(run, tmp_path_factory.mktemp("varied") / "run")
    rng = np.random.default_rng(0)
    change_table(root, "rows", lambda row: row | {"url": URLS[row["row"] % len(URLS)]})

    def sampled(row: dict[str, Any]) -> dict[str, Any]:
        row |= {"score": round(row["score"], 1)}
        return row | ({"selected_by": "sample"} if row["selected_by"] and rng.random() < 0.3 else {})

    change_table(root, "scores", sampled)
    change_table(
        root,
        "matches",
        lambda row: row | {"region_similarity": row["region_similarity"] and rng.uniform(0.2, 0.99)},
    )
    for path in (root / "screen").iterdir():
        table = pq.read_table(path)
        values = pa.array(rng.integers(0, 9, len(table)).astype(float), mask=rng.random(len(table)) < 0.2)
        pq.write_table(table.append_column("noise_magnitude", values), path)
    return root


@pytest.fixture(scope="module")
def opened(varied: Path) -> Iterator[Callable[[str], Rows]]:
    """Return a function that reads a view of the run."""
    with connect(varied) as connection:
        yield lambda view: connection.sql(f"from {view}").to_arrow_table().to_pylist()


@pytest.fixture(scope="module")
def stored(varied: Path) -> Callable[[str], Rows]:
    """Return a function that reads the files of a table."""
    return lambda table: [row for part in sorted((varied / table).iterdir()) for row in pq.read_table(part).to_pylist()]


@pytest.mark.parametrize("view", VIEWS)
def test_the_comment_of_a_view_says_what_a_row_is_and_what_each_column_means(
    view: str, opened: Callable[[str], Rows]
) -> None:
    first, *rest = definition(view).splitlines()
    assert first.startswith("-- One row per ")
    assert [match[1] for line in rest if (match := re.match(r"-- (\w+): \S", line))] == list(opened(view)[0])


def test_every_file_is_a_view() -> None:
    files = Path(__file__).parents[2].joinpath("reports/sql").iterdir()
    assert {file.stem for file in files} == set(VIEWS)


def test_cases(opened: Callable[[str], Rows], stored: Callable[[str], Rows]) -> None:
    copies = {(row["caption_id"], row["image_id"]): row for row in stored("copied_images")}
    images = {row["image_id"]: row for row in stored("evidence")}
    of_copy = ("seed", "similarity", "region_similarity", "pixel_agreement")
    of_image = ("file", "row", "key", "url")
    expected = [
        {name: copies[row["caption_id"], row["image_id"]][name] for name in of_copy}
        | {name: images[row["image_id"]][name] for name in of_image}
        | {name: value for name, value in row.items() if name not in of_copy}
        for row in stored("verdicts")
        if row["verdict"] in CONFIRMED
    ]
    expected.sort(key=lambda row: (RISKS.index(row["risk"]), -row["row_count"], row["caption_id"]))
    found = opened("cases")
    assert len(found) == 16
    assert found == [{name: row[name] for name in found[0]} for row in expected]


def test_families(opened: Callable[[str], Rows], stored: Callable[[str], Rows]) -> None:
    copies = defaultdict(list)
    for row in stored("copied_images"):
        copies[row["caption_id"]].append(row)
    members = defaultdict(list)
    for row in stored("verdicts"):
        if row["verdict"] in CONFIRMED:
            members[row["family"]].append(row)
    found = {row["family"]: row for row in opened("families")}
    assert found.keys() == members.keys()
    for family, rows in members.items():
        worst = min(rows, key=lambda row: (RISKS.index(row["risk"]), -row["row_count"], row["caption_id"]))
        images = {copy["image_id"] for row in rows for copy in copies[row["caption_id"]]}
        best = [c["similarity"] for row in rows for c in copies[row["caption_id"]] if c["image_id"] == row["image_id"]]
        assert found[family] == {
            "family": family,
            "verdict": "verbatim" if any(row["verdict"] == "verbatim" for row in rows) else "partial",
            "risk": worst["risk"],
            "captions": len(rows),
            "rows": sum(row["row_count"] for row in rows),
            "images": len(images),
            "similarity": max(best),
            "caption": worst["caption"],
            "image_id": worst["image_id"],
        }
    risks = [RISKS.index(row["risk"]) for row in found.values()]
    assert risks == sorted(risks)


def test_by_host(opened: Callable[[str], Rows], stored: Callable[[str], Rows]) -> None:
    confirmed = {row["caption_id"] for row in stored("verdicts") if row["verdict"] in CONFIRMED}
    copied = {row["image_id"] for row in stored("copied_images")}
    of_host = defaultdict(list)
    for row in stored("rows"):
        of_host[urlsplit(row["url"] or "").hostname].append(row)
    expected = {
        host: {
            "host": host,
            "rows": len({(row["file"], row["row"]) for row in rows}),
            "captions": len({row["caption_id"] for row in rows}),
            "confirmed": len({row["caption_id"] for row in rows} & confirmed),
            "confirmed_rows": len({(row["file"], row["row"]) for row in rows if row["caption_id"] in confirmed}),
            "copied_images": len({row["image_id"] for row in rows} & copied),
        }
        for host, rows in of_host.items()
    }
    found = opened("by_host")
    assert {row["host"]: row for row in found} == expected
    assert set(expected) == {"a.example", "b.example", "c", None}
    assert [row["confirmed_rows"] for row in found] == sorted((r["confirmed_rows"] for r in found), reverse=True)


def test_a_host_is_what_lookup_takes_for_it() -> None:
    assert HOST.replace("url", "r.url", 1) in definition("by_host")


def test_by_row_count(opened: Callable[[str], Rows], stored: Callable[[str], Rows]) -> None:
    selected = {row["caption_id"] for row in stored("scores") if row["selected_by"]}
    ranges = {"1": (1, 1), "2 to 3": (2, 3), "4 to 9": (4, 9), "10 to 29": (10, 29), "30 or more": (30, 10**9)}
    expected = []
    for name, (least, most) in ranges.items():
        rows = [row for row in stored("verdicts") if least <= row["row_count"] <= most]
        verdicts = [row["verdict"] for row in rows]
        expected.append(
            {
                "row_counts": name,
                "captions": len(rows),
                "rows": sum(row["row_count"] for row in rows),
                "selected": sum(row["caption_id"] in selected for row in rows),
            }
            | {word: verdicts.count(word) for word in ("verbatim", "partial", "unconfirmed")}
        )
    assert opened("by_row_count") == expected


def test_funnel(varied: Path, opened: Callable[[str], Rows], stored: Callable[[str], Rows]) -> None:
    scores = {row["caption_id"]: row for row in stored("scores")}
    generated = {r["caption_id"] for r in stored("generations") if (r["purpose"], r["status"]) == ("discover", "ok")}
    stages = json.loads((varied / "manifest.json").read_text())["stages"]
    steps: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
        "captions": ("ingest", lambda row: True),
        "screened": ("screen", lambda row: scores[row["caption_id"]]["score"] is not None),
        "selected": ("select", lambda row: scores[row["caption_id"]]["selected_by"] is not None),
        "generated": ("generate", lambda row: row["caption_id"] in generated),
        "confirmed": ("confirm", lambda row: row["verdict"] in CONFIRMED),
        "reproduced": ("", lambda row: bool(row["fresh_copies"])),
    }
    expected = []
    for step, (stage, passes) in steps.items():
        counts = [row["row_count"] for row in stored("verdicts") if passes(row)]
        seconds = stages.get(stage, {}).get("seconds")
        expected.append({"step": step, "captions": len(counts), "rows": sum(counts), "seconds": seconds})
    assert opened("funnel") == expected


def test_near_misses(varied: Path, opened: Callable[[str], Rows], stored: Callable[[str], Rows]) -> None:
    limits = json.loads((varied / "manifest.json").read_text())["thresholds"]["sscd"]
    kinds = (("verbatim", "verbatim", "similarity"), ("partial", "region", "region_similarity"))
    matches = [row for row in stored("matches") if (row["embedder"], row["purpose"]) == ("sscd", "discover")]
    nearest: dict[str, dict[str, Any]] = {}
    for match in matches:
        for copy_type, kind, column in kinds:
            gap = limits[kind]["value"] - match[column]
            known = nearest.get(match["caption_id"])
            if known is None or gap < known["gap"]:
                nearest[match["caption_id"]] = {
                    "copy_type": copy_type,
                    "similarity": match[column],
                    "threshold": limits[kind]["value"],
                    "gap": gap,
                    "region_agreement": match["region_agreement"] if copy_type == "partial" else None,
                    "seed": match["seed"],
                    "image_id": match["image_id"],
                }
    columns = ("caption_id", "caption", "row_count", "near_miss")
    expected = [
        {name: row[name] for name in columns} | nearest[row["caption_id"]]
        for row in stored("verdicts")
        if row["verdict"] == "unconfirmed"
    ]
    expected.sort(key=lambda row: row["gap"])
    assert len(expected) == 60
    assert {row["copy_type"] for row in expected} == {"verbatim", "partial"}
    assert opened("near_misses") == expected


def test_detector_agreement(opened: Callable[[str], Rows], stored: Callable[[str], Rows]) -> None:
    values: dict[str, dict[str, float]] = {"score": {row["caption_id"]: row["score"] for row in stored("scores")}}
    for detector in ("entropy_single_step", "noise_magnitude"):
        known = [row for row in stored("screen") if row[detector] is not None]
        values[detector] = {row["caption_id"]: row[detector] for row in known}
    runs = [row for row in stored("generations") if row["purpose"] == "discover" and row["status"] == "ok"]
    of_caption = defaultdict(lambda: [values["entropy_single_step"][row["caption_id"]]])
    for row in runs:
        of_caption[row["caption_id"]].append(row["entropy_single_step"])
    values["entropy_single_step"] |= {caption: float(np.mean(found)) for caption, found in of_caption.items()}
    found = {(row["detector"], row["other_detector"]): row for row in opened("detector_agreement")}
    names = sorted(values)
    assert found.keys() == {(one, other) for one in names for other in names if one < other}
    for (one, other), row in found.items():
        both = sorted(values[one].keys() & values[other].keys())
        expected = spearmanr([values[one][c] for c in both], [values[other][c] for c in both]).statistic
        assert row["captions"] == len(both)
        assert row["rank_correlation"] == pytest.approx(expected)


def test_recall_by_budget(opened: Callable[[str], Rows], stored: Callable[[str], Rows]) -> None:
    scores = stored("scores")
    confirmed = {row["caption_id"] for row in stored("verdicts") if row["verdict"] in CONFIRMED}

    def weight(row: dict[str, Any]) -> float:
        return 1 / row["inclusion_probability"] if row["selected_by"] == "sample" else 1

    total = sum(weight(row) for row in scores if row["caption_id"] in confirmed)
    expected = []
    for row in (row for row in scores if row["caption_id"] in confirmed):
        budget = [other for other in scores if other["score"] >= row["score"]]
        inside = [other for other in budget if other["caption_id"] in confirmed]
        expected.append(
            {name: row[name] for name in ("score", "caption_id", "selected_by")}
            | {"budget": len(budget), "confirmed": len(inside)}
            | {"recall": pytest.approx(sum(weight(other) for other in inside) / total)}
        )
    expected.sort(key=lambda row: (row["budget"], row["caption_id"]))
    assert {row["selected_by"] for row in expected} == {"budget", "sample"}
    assert opened("recall_by_budget") == expected


def test_a_run_without_rows_has_every_view(own_run: Path) -> None:
    for table in own_run.iterdir():
        if table.is_dir():
            shutil.rmtree(table)
    with connect(own_run) as connection:
        for view in VIEWS:
            rows = connection.execute(f"select count(*) from {view}").fetchall()
            assert rows == [(6 if view == "funnel" else 0,)], view


def test_views_are_bound_to_their_own_tables(run: Path) -> None:
    """A temporary table of a caller, such as that of the exclusions, changes no view."""
    with connect(run) as connection:
        before = connection.execute("from funnel").fetchall()
        connection.execute("create temp table stages_of_mine as select 1")
        assert connection.execute("from funnel").fetchall() == before
        with pytest.raises(duckdb.CatalogException):
            connection.execute("create view funnel as select 1")


def test_the_statements_of_the_page_work_and_find_the_rows_that_exclusions_lists(run: Path, tmp_path: Path) -> None:
    rows_to_drop, several_runs = [
        block.text for block in blocks(DOCS / "how-to/query-a-run.md") if block.language == "sql"
    ]
    write_exclusions(run, "drop", str(tmp_path / "drop.parquet"))
    listed = pq.read_table(tmp_path / "drop.parquet", columns=["file", "row", "key"]).to_pylist()
    with connect(run) as connection:
        found = connection.sql(rows_to_drop).to_arrow_table().to_pylist()
    assert len(found) > 300
    assert found == sorted(listed, key=lambda row: (row["file"], row["row"]))
    other: Path = shutil.copytree(run, tmp_path / "other")
    with connect(run, other) as connection:
        funnel, cases = (
            connection.execute(each.query).fetchall() for each in connection.extract_statements(several_runs)
        )
    assert len(funnel) == 12
    assert {runs for _, runs in cases} == {2}
