"""Exclusions: every dataset row that carries what the model reproduces, once, with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.duplicates.captions import caption_id
from audit.errors import AuditError, UsageError
from audit.schema import EXCLUSIONS
from reports.check import check
from reports.exclusions import joined, write_exclusions
from reports.query import query
from tests.support.minimal import copied, place, reproduced, row, write_run

# One file pair as img2dataset writes it: six rows, each with its own image.
IMAGES = [place("0.tar", n, f"k{n}") for n in range(6)]


def rows_of(*captions: str, file: str = "0.parquet") -> list[dict[str, Any]]:
    return [row(file, n, caption, IMAGES[n]) for n, caption in enumerate(captions)]


def listed(run: Path, policy: str = "drop") -> list[dict[str, Any]]:
    return pq.read_table(write_exclusions(run, policy).path).to_pylist()


def numbers(found: list[dict[str, Any]], action: str | None = None) -> list[int]:
    return [item["row"] for item in found if action in (None, item["action"])]


def test_every_row_of_a_confirmed_caption_is_listed_with_its_reason(tmp_path: Path) -> None:
    captions = ("a cat", "a dog", "a cat", "a fox")
    verdicts = [
        reproduced("a cat", IMAGES[0], 0.926),
        reproduced("a fox", IMAGES[3], 0.81, "partial"),
    ]
    run = write_run(tmp_path / "run", rows_of(*captions), verdicts, IMAGES)
    found = listed(run)
    assert [(item["file"], item["row"], item["key"], item["verdict"], item["action"]) for item in found] == [
        ("0.parquet", 0, "k0", "verbatim", "drop"),
        ("0.parquet", 2, "k2", "verbatim", "drop"),
        ("0.parquet", 3, "k3", "partial", "drop"),
    ]
    assert found[1]["why"] == "caption reproduces image k0 of 0.tar (similarity 0.93); 2 rows carry it"
    assert found[2]["why"] == "caption reproduces a region of image k3 of 0.tar (similarity 0.81); 1 row carries it"
    assert (found[1]["image_id"], found[1]["image_file"], found[1]["image_row"]) == (IMAGES[2]["image_id"], "0.tar", 2)
    assert pq.read_schema(run / "exclusions.parquet").equals(EXCLUSIONS)


def test_a_row_with_a_reproduced_image_under_another_caption_is_listed_too(tmp_path: Path) -> None:
    verdicts = [reproduced("a cat", IMAGES[1], 0.9)]
    run = write_run(tmp_path / "run", rows_of("a cat", "my holiday", "a dog"), verdicts, IMAGES)
    found = listed(run)
    assert numbers(found) == [0, 1]
    assert (found[1]["verdict"], found[1]["caption_id"]) == ("not_selected", caption_id("my holiday"))
    assert found[1]["why"] == 'image k1 of 0.tar is reproduced by another caption: "a cat" (similarity 0.90)'
    assert found[1]["family"] == caption_id("a cat")


def test_so_is_a_row_whose_image_has_the_same_bytes(tmp_path: Path) -> None:
    images = [place("0.tar", 0, "k0", "same"), IMAGES[1], place("0.tar", 2, "k2", "same")]
    rows = [row("0.parquet", n, caption, images[n]) for n, caption in enumerate(("a cat", "a dog", "my holiday"))]
    found = listed(write_run(tmp_path / "run", rows, [reproduced("a cat", images[0], 0.9)], images))
    assert numbers(found) == [0, 2]
    same = "image k2 of 0.tar has the bytes of image k0 of 0.tar, which another caption reproduces"
    assert found[1]["why"] == f'{same}: "a cat" (similarity 0.90)'


def test_so_is_a_row_whose_image_is_a_near_duplicate(tmp_path: Path) -> None:
    rows, verdicts = rows_of("a cat", "a dog", "my holiday"), [reproduced("a cat", IMAGES[0], 0.9)]
    clusters = [(IMAGES[0], IMAGES[2]), (IMAGES[1],)]
    found = listed(write_run(tmp_path / "run", rows, verdicts, IMAGES, clusters=clusters))
    assert numbers(found) == [0, 2]
    near = "image k2 of 0.tar is a near duplicate of image k0 of 0.tar, which another caption reproduces"
    assert found[1]["why"] == f'{near}: "a cat" (similarity 0.90)'


def test_dedup_keeps_one_row_of_each_cluster_of_reproduced_images(tmp_path: Path) -> None:
    """One family copied two pictures, each of which is kept twice; a row without an image goes by its family."""
    rows = [*rows_of("a cat", "a kitten", "my holiday", "a dog", "a fox"), row("0.parquet", 9, "a cat")]
    verdicts = [reproduced("a cat", IMAGES[0], 0.9), reproduced("a kitten", IMAGES[0], 0.9, family="a cat")]
    clusters = [(IMAGES[0], IMAGES[2]), (IMAGES[1], IMAGES[3]), (IMAGES[4],)]
    second = [copied("a kitten", IMAGES[1], 0.85)]
    run = write_run(tmp_path / "run", rows, verdicts, IMAGES, second, clusters=clusters)
    found = listed(run, "dedup")
    assert numbers(found, "keep") == [0, 1, 9]
    assert numbers(found, "drop") == [2, 3]
    assert {item["row"]: item["family"] for item in found} == {
        **dict.fromkeys((0, 2), IMAGES[0]["image_id"]),
        **dict.fromkeys((1, 3), IMAGES[1]["image_id"]),
        9: caption_id("a cat"),
    }


@pytest.mark.parametrize("how", ["verbatim", "partial"])
def test_all_images_count_that_a_confirmed_caption_copied(tmp_path: Path, how: str) -> None:
    run = write_run(
        tmp_path / "run",
        rows_of("a cat", "a dog", "my holiday"),
        [reproduced("a cat", IMAGES[0], 0.9)],
        IMAGES,
        [copied("a cat", IMAGES[2], 0.85, how)],
    )
    assert numbers(listed(run)) == [0, 2]


def test_dedup_keeps_the_first_row_of_a_family_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    """Family: `a cat` and `a kitten` share an image, which `my holiday` carries; `a fox` is another."""
    rows = [
        *rows_of("a kitten", "my holiday", "a cat", "a dog", file="1.parquet"),
        row("0.parquet", 7, "a cat"),
        row("0.parquet", 8, "a fox"),
    ]
    verdicts = [
        reproduced("a cat", IMAGES[1], 0.9),
        reproduced("a kitten", IMAGES[1], 0.9, family="a cat"),
        reproduced("a fox", IMAGES[5], 0.9),
    ]
    found = listed(write_run(tmp_path / "run", rows, verdicts, IMAGES), "dedup")
    assert [(item["file"], item["row"], item["action"]) for item in found] == [
        ("0.parquet", 7, "keep"),
        ("0.parquet", 8, "keep"),
        ("1.parquet", 0, "drop"),
        ("1.parquet", 1, "drop"),
        ("1.parquet", 2, "drop"),
    ]
    assert found[0]["why"].endswith("; the first of 4 rows, kept")
    assert found[1]["why"].endswith("; 1 row carries it; the only row, kept")
    assert found[2]["why"].endswith("; row 7 of 0.parquet is kept")


def test_families_that_share_a_row_are_one_group(tmp_path: Path) -> None:
    """The own image of a row of `a cat` is what `a fox` reproduces: keeping one row of each would keep both twice."""
    verdicts = [reproduced("a cat", IMAGES[0], 0.9), reproduced("a fox", IMAGES[1], 0.9)]
    run = write_run(tmp_path / "run", rows_of("a cat", "a cat", "a fox"), verdicts, IMAGES)
    found = listed(run, "dedup")
    assert (numbers(found, "keep"), numbers(found, "drop")) == ([0], [1, 2])
    assert len({item["family"] for item in found}) == 1


def test_a_row_of_two_confirmed_captions_is_listed_once_and_joins_their_families(tmp_path: Path) -> None:
    verdicts = [reproduced("a cat", IMAGES[3], 0.9), reproduced("a fox", IMAGES[4], 0.9)]
    rows = [*rows_of("a cat", "a dog", "a fox"), row("0.parquet", 0, "a fox", IMAGES[0])]
    found = listed(write_run(tmp_path / "run", rows, verdicts, IMAGES), "dedup")
    assert (numbers(found, "keep"), numbers(found, "drop")) == ([0], [2])
    assert len({item["family"] for item in found}) == 1
    assert [item["image_row"] for item in found] == [0, 2]


def test_a_file_of_which_a_sample_was_audited_was_not_read_whole(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of("a cat"), [], IMAGES, accounting={"input_rows": 9, "sampled_out": 8})
    notes = json.loads(pq.read_schema(write_exclusions(run).path).metadata[b"crossaudit"])
    assert notes["files"] == {"0.parquet": None}


def test_a_sample_stays_with_the_rows_that_stay(tmp_path: Path) -> None:
    """Two captions of one image, of which only one goes."""
    shared, own = IMAGES[0], IMAGES[1]
    rows = [
        row("0.parquet", 0, "a cat", shared),
        row("0.parquet", 1, "a dog", shared),
        row("0.parquet", 2, "a cat", own),
    ]
    run = write_run(tmp_path / "run", rows, [reproduced("a cat", IMAGES[5], 0.9)], IMAGES)
    assert [item["image_row"] for item in listed(run)] == [None, 1]


def test_an_image_that_could_not_be_read_has_its_place_all_the_same(tmp_path: Path) -> None:
    lost = {"stage": "embed", "file": "0.tar", "row": 2, "rows": 1, "kind": "unreadable_image", "message": "broken"}
    rows = rows_of("a cat", "a dog", "a cat")
    run = write_run(tmp_path / "run", rows, [reproduced("a cat", IMAGES[0], 0.9)], IMAGES[:2], errors=[lost])
    assert [(item["image_file"], item["image_row"]) for item in listed(run)] == [("0.tar", 0), ("0.tar", 2)]


def test_reproduced_images_that_no_row_names_are_counted(tmp_path: Path) -> None:
    rows = [row("0.parquet", 0, "a cat"), row("0.parquet", 1, "a dog")]
    done = write_exclusions(write_run(tmp_path / "run", rows, [reproduced("a cat", IMAGES[0], 0.9)], IMAGES))
    assert (done.dropped, done.kept, done.captions, done.groups, done.without_row) == (1, 0, 1, 1, 1)


def test_the_file_tells_how_many_rows_and_images_each_file_had(tmp_path: Path) -> None:
    plain = [place(name, 0, "k") for name in ("a.png", "x/b.png", "x/c.png")]
    both = {"file": "/d/1.parquet", "name": "1.parquet", "rows": None, "sha256": ""}
    inputs = [both | {"kind": kind} for kind in ("captions", "images")] + [both | {"kind": "images", "name": "x"}]
    lost = [
        {"stage": "ingest", "file": "0.parquet", "row": None, "rows": 4, "kind": "not_downloaded"},
        {"stage": "ingest", "file": "9.parquet", "row": None, "rows": None, "kind": "unreadable_file"},
        {"stage": "screen", "file": "0.parquet", "row": 1, "rows": 1, "kind": "crash"},
    ]
    run = write_run(tmp_path / "run", rows_of("a cat", "a dog"), [], [*IMAGES, *plain], errors=lost, inputs=inputs)
    notes = json.loads(pq.read_schema(write_exclusions(run).path).metadata[b"crossaudit"])
    assert notes == {
        "policy": "drop",
        "caption": "caption",
        "delimiter": None,
        "files": {"0.parquet": 6, "9.parquet": None},
        "images": {"0.tar": 6},
        "folders": {"": 1, "x": 2},
        "shared": ["1.parquet"],
    }


def test_nothing_confirmed_is_an_empty_file(tmp_path: Path) -> None:
    assert listed(write_run(tmp_path / "run", rows_of("a cat"), [], IMAGES)) == []


def test_the_file_in_a_run_disturbs_neither_check_nor_query(own_run: Path) -> None:
    before = query(own_run, "show tables")
    done = write_exclusions(own_run)
    assert (done.dropped, done.captions) == (349, 16)
    assert done.path == f"{own_run}/exclusions.parquet"
    assert all(result.ok for result in check(own_run))
    assert query(own_run, "show tables") == before
    assert not [path for path in own_run.iterdir() if path.name.endswith(".tmp")]


def test_a_run_that_is_not_finished_has_no_exclusions_yet(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of("a cat"), [], finished=None)
    with pytest.raises(AuditError, match="not finished"):
        write_exclusions(run)


def test_a_run_that_lost_rows_is_an_error_and_not_a_shorter_list(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of("a cat", "a cat"), [reproduced("a cat", IMAGES[0], 0.9)], IMAGES)
    part = run / "rows/00000.parquet"
    pq.write_table(pq.read_table(part)[:1], part)
    with pytest.raises(AuditError, match=r"do not add up to their row_count: 1 and 2\n.*crossaudit check"):
        write_exclusions(run)
    assert not (run / "exclusions.parquet").exists()


def test_out_replaces_exclusions_and_nothing_else(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of("a cat"), [reproduced("a cat", IMAGES[0], 0.9)], IMAGES)
    out = tmp_path / "here.parquet"
    write_exclusions(run, "drop", str(out))
    assert pq.read_table(write_exclusions(run, "dedup", out.as_uri()).path)["action"].to_pylist() == ["keep"]
    precious = tmp_path / "captions.parquet"
    precious.write_bytes((run / "rows/00000.parquet").read_bytes())
    with pytest.raises(UsageError, match="captions.parquet: already exists and is not an exclusions file"):
        write_exclusions(run, "drop", str(precious))
    assert Path(write_exclusions(run, "drop", str(tmp_path / "new/here.parquet")).path).is_file()


@pytest.fixture(scope="module")
def of_quotes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """A run whose confirmed caption has quotes, and its exclusions."""
    rows, verdicts = rows_of('a "cat", é', "a dog"), [reproduced('a "cat", é', IMAGES[0], 0.9)]
    run = write_run(tmp_path_factory.mktemp("quotes") / "run", rows, verdicts, IMAGES)
    return run, pq.read_table(write_exclusions(run, "dedup").path)


@pytest.mark.parametrize(
    ("name", "read"),
    [("here.csv", pacsv.read_csv), ("here.JSONL", pajson.read_json), ("here.parquet", pq.read_table)],
)
def test_out_is_written_in_the_format_of_its_suffix_and_replaced_by_the_next(
    of_quotes: tuple[Path, pa.Table], tmp_path: Path, name: str, read: Callable[[Path], pa.Table]
) -> None:
    run, wanted = of_quotes
    out = tmp_path / name
    write_exclusions(run, "drop", str(out))
    assert write_exclusions(run, "dedup", str(out)).path == str(out)
    assert wanted["action"].to_pylist() == ["keep"]
    assert read(out).select(["file", "row", "why"]).to_pylist() == wanted.select(["file", "row", "why"]).to_pylist()
    assert read(out).column_names == wanted.column_names
    out.write_text("something else\n")
    with pytest.raises(UsageError, match="already exists and is not an exclusions file"):
        write_exclusions(run, "drop", str(out))


@pytest.mark.parametrize("name", ["here.xlsx", "here", "here.parquet.gz"])
def test_a_suffix_of_no_known_format_is_refused(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run", rows_of("a cat"), [], IMAGES)
    with pytest.raises(UsageError, match=r"cannot write the format|no suffix") as refused:
        write_exclusions(run, "drop", str(tmp_path / name))
    assert ".parquet or .csv or .jsonl" in str(refused.value)
    assert not (tmp_path / name).exists()


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from("abcdefgh"))))
def test_what_is_linked_has_one_root_the_smallest(links: list[tuple[str, str]]) -> None:
    groups: list[set[str]] = []
    for link in links:
        touched = [group for group in groups if group & set(link)]
        groups = [group for group in groups if not group & set(link)] + [set(link).union(*touched)]
    assert joined(links) == {name: min(group) for group in groups for name in group}


def test_an_out_that_no_filesystem_opens_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", rows_of("a cat"), [reproduced("a cat", IMAGES[0], 0.9)], IMAGES)
    with pytest.raises(AuditError, match="nowhere://x/y.parquet: cannot be opened"):
        write_exclusions(run, "drop", "nowhere://x/y.parquet")
