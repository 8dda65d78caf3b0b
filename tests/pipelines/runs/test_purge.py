"""The pictures of a run removed: every row stays, nothing of the pictures does, and every command knows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from audit.errors import AuditError
from audit.record.ledger import Ledger
from pipelines.engine.owner import Owner
from pipelines.runs.lookup import nearest_images
from pipelines.runs.mitigate import Request, mitigate_run
from pipelines.runs.purge import PICTURES, purge
from pipelines.runs.reproduce import reproduce
from pipelines.runs.review import open_review
from pipelines.runs.written_files import write_picture
from reports.check import check
from reports.exclusions import write_exclusions
from reports.query import query
from tests.support.called import crossaudit
from tests.support.toy import FEW, MEMORIZED, MODEL, png

pytestmark = pytest.mark.slow

SMALL = Request(methods=("rescale:bos_scale=1,keep=words",), confirmed=3, ordinary=2)


@pytest.fixture(scope="module")
def finished(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with mitigation measured and a review begun; read only."""
    run = Path(shutil.copytree(few, tmp_path_factory.mktemp("mitigated") / "run"))
    mitigate_run(str(run), SMALL)
    open_review(str(run), decoys=6)
    return run


@pytest.fixture
def own(few: Path, tmp_path: Path) -> Path:
    """A finished run that the test may change."""
    return Path(shutil.copytree(few, tmp_path / "run"))


@pytest.fixture(scope="module")
def confirmed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After --keep confirmed; read only."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("confirmed") / "run"))
    purge(str(run), "confirmed")
    return run


@pytest.fixture(scope="module")
def none(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """After --keep none; read only."""
    run = Path(shutil.copytree(finished, tmp_path_factory.mktemp("none") / "run"))
    purge(str(run), "none")
    return run


def manifest(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_bytes())


def wrong(run: Path) -> list[str]:
    return [f"{result.name}: {result.detail}" for result in check(run) if not result.ok]


def pictures(run: Path) -> dict[str, list[bytes]]:
    """All that are left, by table."""
    ledger = Ledger(str(run))
    return {table: ledger.read(table)[column].drop_null().to_pylist() for table, column in PICTURES.items()}


def content(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def test_the_pictures_of_confirmed_captions_and_the_evidence_stay(finished: Path, confirmed: Path) -> None:
    ids = query(finished, "select caption_id from verdicts where verdict in ('verbatim', 'partial')")
    kept = set(ids["caption_id"].to_pylist())
    for table, column in PICTURES.items():
        before, after = Ledger(str(finished)).read(table).to_pylist(), Ledger(str(confirmed)).read(table).to_pylist()
        others = [row | {column: None} for row in before]
        assert [row | {column: None} for row in after] == others, table
        for then, now in zip(before, after, strict=True):
            stays = table == "evidence" or then["caption_id"] in kept
            assert now[column] == (then[column] if stays else None)
    assert {row["purpose"] for row in Ledger(str(confirmed)).read("generations").to_pylist() if row["image"]} == {
        "discover",
        "fresh",
    }


def test_no_picture_stays(none: Path) -> None:
    assert pictures(none) == dict.fromkeys(PICTURES, [])


@pytest.mark.parametrize("keep", ["confirmed", "none"])
def test_nothing_else_changes(finished: Path, keep: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(keep)
    before, after = content(finished), content(run)
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert {name.partition("/")[0] for name in changed} <= {*PICTURES, "manifest.json", "report.html"}
    for name in changed - {"manifest.json", "report.html"}:
        old, new = pq.read_table(finished / name), pq.read_table(run / name)
        assert new.schema.equals(old.schema, check_metadata=True)
        assert len(new) == len(old)


@pytest.mark.parametrize("keep", ["confirmed", "none"])
def test_no_byte_of_what_was_removed_is_left_anywhere(
    finished: Path, keep: str, request: pytest.FixtureRequest
) -> None:
    """In the files as they are, in the columns once unpacked, and in the report, which makes pictures anew."""
    run = request.getfixturevalue(keep)
    left = {picture for found in pictures(run).values() for picture in found}
    gone = {picture for found in pictures(finished).values() for picture in found} - left
    assert len(gone) > 10
    for path in run.rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert not any(picture in raw for picture in gone), path
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            for field in table.schema:
                if pa.types.is_binary(field.type):
                    assert gone.isdisjoint(table[field.name].to_pylist()), (path, field.name)
    shown = re.findall(r"data:image/(png|jpeg)", (run / "report.html").read_text())
    assert bool(shown) == (keep == "confirmed")
    assert len(shown) < len(re.findall(r"data:image/(png|jpeg)", (finished / "report.html").read_text()))


def test_the_manifest_says_when_what_was_kept_and_how_many_went(finished: Path, confirmed: Path, none: Path) -> None:
    before = {table: len(found) for table, found in pictures(finished).items()}
    for run, keep in ((confirmed, "confirmed"), (none, "none")):
        [entry] = manifest(run)["purged"]
        removed = {table: before[table] - len(found) for table, found in pictures(run).items()}
        assert (entry["keep"], entry["removed"]) == (keep, removed)
        assert entry["begun"] <= entry["finished"]
    assert "purged" not in manifest(finished)


@pytest.mark.parametrize("keep", ["confirmed", "none"])
def test_check_passes_and_says_so(keep: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(keep)
    results = check(run)
    assert [result for result in results if not result.ok] == []
    assert any(f"--keep {keep}" in result.detail for result in results)


@pytest.mark.parametrize("table", ["generations", "evidence"])
def test_check_sees_a_picture_that_came_back(finished: Path, none: Path, tmp_path: Path, table: str) -> None:
    run = Path(shutil.copytree(none, tmp_path / "run"))
    for part in (finished / table).iterdir():
        shutil.copy(part, run / table / part.name)
    [line] = wrong(run)
    assert "that a purge removes are gone" in line
    assert "left that should be gone" in line


def test_an_interrupted_purge_is_known_and_finished_by_the_same_command(finished: Path, own: Path) -> None:
    """Here it ends at the report, and one part is as if it had ended before that."""
    (own / "report.html").unlink()
    (own / "report.html").mkdir()
    with pytest.raises(AuditError, match="report.html"):
        purge(str(own), "confirmed")
    part = "generations/control-00000.parquet"
    shutil.copy(finished / part, own / part)
    [entry] = manifest(own)["purged"]
    assert entry["finished"] is None
    [line] = wrong(own)
    assert "interrupted: rerun `crossaudit purge --keep confirmed` to finish it" in line
    with pytest.raises(AuditError, match="(?s)--keep confirmed was interrupted.*Finish it first: .*--keep confirmed"):
        purge(str(own), "none")
    (own / "report.html").rmdir()
    assert purge(str(own), "confirmed").pictures == entry["removed"]
    assert wrong(own) == []
    [finally_] = manifest(own)["purged"]
    assert finally_ == entry | {"finished": finally_["finished"]}
    assert finally_["finished"] is not None
    assert pq.read_table(own / part)["image"].null_count == pq.read_metadata(own / part).num_rows


def test_a_stricter_purge_adds_to_the_first_and_a_laxer_one_finds_nothing(confirmed: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(confirmed, tmp_path / "run"))
    left = {table: len(found) for table, found in pictures(run).items()}
    assert purge(str(run), "none").pictures == left
    assert purge(str(run), "confirmed").pictures == dict.fromkeys(PICTURES, 0)
    assert [(entry["keep"], entry["removed"]) for entry in manifest(run)["purged"]][1:] == [("none", left)]
    assert wrong(run) == []
    assert pictures(run) == dict.fromkeys(PICTURES, [])


def test_the_report_says_it_in_place_of_the_pictures(confirmed: Path, none: Path) -> None:
    page, with_pictures = ((run / "report.html").read_text("utf-8") for run in (none, confirmed))
    assert page.count('<div class="absent">pictures were removed on ') == 2 * page.count('<article class="case')
    assert "--keep none" in page
    assert 'class="mask"' not in page
    assert "--keep confirmed" in with_pictures
    assert '<div class="absent">' not in with_pictures


def test_what_needs_no_picture_works_as_before(finished: Path, none: Path, tmp_path: Path) -> None:
    sql = "from verdicts order by caption_id"
    assert query(none, sql).equals(query(finished, sql))
    assert write_exclusions(str(none), out=str(tmp_path / "x.parquet")).dropped > 0
    assert nearest_images(str(none), png(3), "a").equals(nearest_images(str(finished), png(3), "a"))


def test_what_needs_a_training_image_says_that_it_was_removed(confirmed: Path, none: Path, tmp_path: Path) -> None:
    found = reproduce(str(confirmed), MEMORIZED)
    # Not equal to the bit: the run generated in a batch, and kernels may round differently for one row alone.
    assert found.difference is not None
    assert found.agrees
    copy = str(shutil.copytree(confirmed, tmp_path / "run"))
    assert mitigate_run(copy, SMALL).equals(Ledger(copy).read("mitigation_summary"))
    for command in (lambda: reproduce(str(none), MEMORIZED), lambda: mitigate_run(str(none), SMALL)):
        with pytest.raises(AuditError, match="(?s)no training image is left .*--keep none.*another --out"):
            command()


def test_files_of_reproduce_and_explain_go_with_the_pictures(own: Path, tmp_path: Path) -> None:
    """A confirmed caption's file with --keep none only; another caption's file with either."""
    case, page = tmp_path / "case.png", own / "explanation.html"
    assert crossaudit("reproduce", str(own), MEMORIZED, "--out", str(case)).returncode == 0
    calibration = str(own / "calibration.json")
    explained = crossaudit(
        *("explain", str(MODEL), "picture 1 of a thing", "--calibration", calibration),
        *("--steps", "2", "--out", str(page)),
    )
    assert explained.returncode == 0, explained.stderr
    assert case.is_file()
    assert page.is_file()
    assert "crossaudit purge" not in explained.stderr
    assert purge(str(own), "confirmed").files == [str(page)]
    assert case.is_file()
    assert not page.exists()
    done = crossaudit("purge", str(own), "--keep", "none")
    assert done.returncode == 0
    assert re.search(r"^generations: \d+ pictures removed$", done.stdout, re.M)
    assert f"{case}: removed" in done.stdout
    assert not case.exists()
    assert manifest(own)["pictures"] == []
    assert wrong(own) == []


def test_files_that_are_not_the_runs_own_are_named_and_left(own: Path, tmp_path: Path) -> None:
    changed, elsewhere, stranger = tmp_path / "changed.png", "/mnt/other/case.png", own / "photo.JPG"
    for file in (changed, stranger):
        assert write_picture(str(own), file, b"picture", MEMORIZED) is None
    changed.write_bytes(b"another picture")
    data = manifest(own)
    data["pictures"][1] |= {"host": "another-machine", "file": elsewhere}
    (own / "manifest.json").write_text(json.dumps(data))
    purged = purge(str(own), "none")
    assert purged.files == []
    assert changed.is_file()
    assert stranger.is_file()
    reasons = ("changed since it was written", "written on another-machine", "not written by this run's commands")
    assert purged.left == [f"{file}: {why}" for file, why in zip((changed, elsewhere, stranger), reasons, strict=True)]
    assert purge(str(own), "none").left == purged.left


def test_a_file_is_written_though_its_run_cannot_record_it(own: Path, tmp_path: Path) -> None:
    file = tmp_path / "case.png"
    data = manifest(own) | {"finished": None}
    (own / "manifest.json").write_text(json.dumps(data))
    assert write_picture(str(own), file, b"picture", MEMORIZED) == "its run is not finished"
    assert write_picture(str(tmp_path / "gone"), file, b"picture", MEMORIZED) is not None
    assert file.read_bytes() == b"picture"
    with pytest.raises(AuditError, match="case.png/no.png: cannot be written: File exists"):
        write_picture(None, file / "no.png", b"picture", MEMORIZED)


def test_only_one_process_writes_into_a_run(own: Path, tmp_path: Path) -> None:
    """A purge is refused; a picture is written, and its command says that no purge will find it."""
    before, file = content(own), tmp_path / "case.png"
    with Owner(Ledger(str(own))):
        with pytest.raises(AuditError, match="is writing to this run"):
            purge(str(own), "none")
        problem = write_picture(str(own), file, b"picture", MEMORIZED)
    assert problem is not None
    assert "is writing to this run" in problem
    assert file.read_bytes() == b"picture"
    assert content(own) == before


def test_the_run_is_not_computed_again(toy: Path, none: Path, audited: Callable[..., str]) -> None:
    before = content(none)
    audited(toy / "audit.yaml", *FEW, out=str(none))
    assert content(none) == before


def test_only_a_finished_run_is_purged(own: Path) -> None:
    data = manifest(own) | {"finished": None}
    (own / "manifest.json").write_text(json.dumps(data))
    before = content(own)
    with pytest.raises(AuditError, match="the run is not finished"):
        purge(str(own), "none")
    assert content(own) == before


def test_the_command_asks_what_to_keep(few: Path) -> None:
    asked = crossaudit("purge", str(few))
    assert asked.returncode == 2
    assert "--keep" in asked.stderr
