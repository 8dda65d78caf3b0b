"""The pairs of a review: drawn once, of known truth where they are decoys, and gone with the pictures of a purge."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from audit.duplicates.captions import caption_id
from audit.errors import AuditError, UsageError
from audit.record.ledger import Ledger
from audit.schema import ANSWER_WORDS, HUMAN_VERDICTS, REVIEW_PAIRS
from pipelines.runs.purge import purge
from pipelines.runs.review import Review, open_review
from reports.check import check
from reports.html import render
from reports.query import query
from reports.record.build import build
from tests.support.markup import text_of
from tests.support.reviewed import CAPTIONS, CONTROL_CAPTIONS, CONTROLS, COPIES, REPRODUCING, reviewable


@pytest.fixture
def dataset(make_dataset: Callable[[Path], Path], tmp_path: Path) -> Path:
    """The configuration of a dataset that the test may change."""
    return make_dataset(tmp_path / "data")


@pytest.fixture(scope="module")
def written(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with 12 confirmed captions; read only."""
    return reviewable(toy / "audit.yaml", tmp_path_factory.mktemp("reviewable") / "run")


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A finished run with 12 confirmed captions that the test may change."""
    return Path(shutil.copytree(written, tmp_path / "run"))


@pytest.fixture(scope="module")
def answered(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with the answers of one rater; read only."""
    run = Path(shutil.copytree(written, tmp_path_factory.mktemp("answered") / "run"))
    judged(open_review(str(run), decoys=3), "anna", {"case": "copy"})
    return run


def rows(review: Review, kind: str) -> list[dict]:
    return [row for row in review.pairs.to_pylist() if row["pair_type"] == kind]


def wrong(run: Path) -> list[str]:
    """The statements about reviews, parts and pictures that do not hold."""
    words = ("review", "part is", "purge")
    return [result.detail for result in check(run) if not result.ok and any(word in result.name for word in words)]


def judged(review: Review, rater: str, answers: dict[str, str]) -> None:
    """Answer every pair by its type."""
    kinds = dict(zip(review.pairs["pair"].to_pylist(), review.pairs["pair_type"].to_pylist(), strict=True))
    for number, pair in enumerate(review.answers.order(rater)):
        review.answers.give(rater, number, answers.get(kinds[pair], "no copy"), 1.0)


def test_cases_are_the_confirmed_captions_and_decoys_are_no_confirmed_pairs(run: Path) -> None:
    review = open_review(str(run), decoys=15)
    assert {row["caption_id"] for row in rows(review, "case")} == {caption_id(text) for text in CAPTIONS}
    controls = rows(review, "control")
    assert len(controls) == CONTROLS - 1
    assert REPRODUCING not in {row["caption_id"] for row in controls}
    assert {row["purpose"] for row in controls} == {"control"}
    assert len({row["image_id"] for row in controls}) == len(controls)
    assert len(rows(review, "mismatch")) == 15 - len(controls)
    assert len(rows(review, "altered")) == 5
    own = {(row["caption_id"], row["image_id"]) for row in rows(review, "case")}
    assert not own & {(row["caption_id"], row["image_id"]) for row in rows(review, "mismatch")}
    assert review.pictures.keys() == set(review.pairs["pair"].to_pylist())
    assert Ledger(str(run)).read("review_pairs").schema.equals(REVIEW_PAIRS)
    assert wrong(run) == []


def test_the_nearest_control_captions_come_first(run: Path) -> None:
    controls = rows(open_review(str(run), decoys=4), "control")
    assert {row["caption_id"] for row in controls} == {caption_id(text) for text in CONTROL_CAPTIONS[-4:]}


def test_captions_of_the_audit_sample_come_first(run: Path) -> None:
    chosen = {row["caption_id"] for row in rows(open_review(str(run), most_cases=6, decoys=3), "case")}
    assert chosen == {caption_id(text) for text in CAPTIONS[::2]}


def test_an_image_of_the_same_family_or_cluster_is_no_decoy(run: Path) -> None:
    """The first five captions are one family, the sixth image is a near duplicate of the first."""
    ledger = Ledger(str(run))
    verdicts, clusters = (ledger.read(name).to_pylist() for name in ("verdicts", "image_clusters"))
    for row in verdicts[:5]:
        row["family"] = verdicts[0]["family"]
    clusters[5]["cluster"] = clusters[0]["cluster"]
    for name, content in (("verdicts", verdicts), ("image_clusters", clusters)):
        ledger.write(name, "00000", pa.Table.from_pylist(content, schema=ledger.read(name).schema))
    ledger.remove("generations", "control-00000")
    review = open_review(str(run), decoys=CONTROLS)
    assert len(rows(review, "control")) == 0
    alike = {row["image_id"] for row in clusters[:6]}
    family = {row["caption_id"] for row in verdicts[:5]}
    of_family = [row for row in rows(review, "mismatch") if row["caption_id"] in family]
    assert len(of_family) == 5
    assert not {row["image_id"] for row in of_family} & alike
    assert review.notes == ["there are no control decoys: the run has no generations of control captions"]


def test_without_the_dataset_wrong_images_stand_in_for_control_captions(dataset: Path, tmp_path: Path) -> None:
    run = reviewable(dataset, tmp_path / "run")
    shutil.rmtree(dataset.parent / "images")
    review = open_review(str(run), decoys=20)
    assert len(rows(review, "control")) == 0
    assert len(rows(review, "mismatch")) == len(CAPTIONS)
    first, second = review.notes
    assert first.startswith("there are no control decoys: the training images cannot be read: ")
    assert second == "only 12 decoys that are not copies could be made, instead of 20"


def test_an_image_that_has_changed_since_the_run_is_no_decoy(dataset: Path, tmp_path: Path) -> None:
    run = reviewable(dataset, tmp_path / "run")
    tar = dataset.parent / "images/00001.tar"
    tar.write_bytes(tar.read_bytes().replace(b"IDAT", b"IDAX"))
    review = open_review(str(run), decoys=4)
    assert len(rows(review, "control")) < CONTROLS - 1
    assert len(rows(review, "control")) + len(rows(review, "mismatch")) == 4


def test_the_pairs_are_drawn_once_and_need_the_dataset_no_more(dataset: Path, tmp_path: Path) -> None:
    run = reviewable(dataset, tmp_path / "run")
    first = open_review(str(run), decoys=9)
    shutil.rmtree(dataset.parent)
    second = open_review(str(run))
    assert second.pairs.equals(first.pairs)
    assert second.pictures == first.pictures
    assert second.notes == []
    with pytest.raises(UsageError, match="drawn already"):
        open_review(str(run), decoys=9)


def test_the_pictures_are_those_of_the_pair(run: Path) -> None:
    from audit.images.decoding import decode

    review = open_review(str(run), decoys=15)
    differences = {kind: [] for kind in ("case", "control", "mismatch", "altered")}
    true = {caption_id(text) for text in CAPTIONS[:COPIES]}
    for row in review.pairs.to_pylist():
        one, other = (np.asarray(decode(content).resize((8, 8)), float) for content in review.pictures[row["pair"]])
        kind = row["pair_type"] if row["pair_type"] != "case" or row["caption_id"] in true else "mismatch"
        differences[kind].append(np.abs(one - other).mean())
    assert max(differences["case"] + differences["altered"]) < min(differences["control"] + differences["mismatch"])


def test_a_run_with_nothing_confirmed_has_nothing_to_review(own: Path) -> None:
    ledger = Ledger(str(own))
    for name in ledger.parts("verdicts"):
        part = ledger.read("verdicts", name)
        clear = pa.array(["not_selected"] * len(part))
        ledger.write("verdicts", name, part.set_column(part.schema.get_field_index("verdict"), "verdict", clear))
    with pytest.raises(AuditError, match="nothing to review"):
        open_review(str(own))
    assert ledger.parts("review_pairs") == []


def test_a_real_run_can_be_reviewed(own: Path) -> None:
    review = open_review(str(own), decoys=6)
    assert review.counts["case"] >= 1
    assert review.counts["control"] == 6
    for rater in ("anna", "ben"):
        judged(review, rater, {"case": "copy", "altered": "copy"})
    assert wrong(own) == []
    assert f"{review.counts['case']} upheld, 0 overturned, 0 undecided" in text_of(render(build(own)))


def test_check_has_no_objection_to_answers_that_were_given(answered: Path) -> None:
    assert wrong(answered) == []


@pytest.mark.parametrize("column", ["pair", "pair_type", "caption_id", "image_id", "answer"])
def test_check_finds_an_edited_answer(answered: Path, tmp_path: Path, column: str) -> None:
    ledger = Ledger(str(shutil.copytree(answered, tmp_path / "run")))
    table = ledger.read("reviews", "anna")
    changed = [f"not {value}" for value in table[column].to_pylist()]
    ledger.write("reviews", "anna", table.set_column(table.schema.get_field_index(column), column, pa.array(changed)))
    assert wrong(tmp_path / "run")


def test_check_finds_a_second_answer_and_a_case_that_was_not_confirmed(answered: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(answered, tmp_path / "run"))
    ledger = Ledger(str(run))
    table = ledger.read("reviews", "anna")
    ledger.write("reviews", "anna", pa.concat_tables([table, table[:1]]))
    assert len(wrong(run)) == 1
    ledger.write("reviews", "anna", table)
    pairs = ledger.read("review_pairs")
    case = pc.equal(pairs["pair_type"], "case")
    strange = pc.if_else(case, pa.scalar("elsewhere"), pairs["image_id"])
    ledger.write("review_pairs", "00000", pairs.set_column(5, "image_id", strange))
    assert wrong(run)


def test_a_purge_takes_the_pictures_of_decoys_and_keeps_the_answers(run: Path) -> None:
    review = open_review(str(run), decoys=9)
    for rater in ("anna", "ben"):
        judged(review, rater, {"case": "copy", "altered": "part"})
    said = "12 upheld, 0 overturned, 0 undecided"
    assert said in text_of(render(build(run)))
    assert purge(str(run), "confirmed").pictures["review_pairs"] == 9
    assert review.ledger.read("review_pairs")["image"].null_count == len(review.pairs)
    assert review.ledger.read("reviews").num_rows == 2 * len(review.pairs)
    assert said in text_of((run / "report.html").read_text("utf-8"))
    assert wrong(run) == []
    with pytest.raises(AuditError, match=r"(?s)the pictures of 9 of 24 pairs are missing: pictures were removed on"):
        open_review(str(run))


def test_after_a_purge_a_new_review_has_what_is_left(run: Path) -> None:
    purge(str(run), "confirmed")
    review = open_review(str(run), decoys=9)
    assert (review.counts["case"], review.counts["control"], review.counts["mismatch"]) == (12, 0, 9)


def test_after_all_pictures_are_gone_no_review_is_begun(run: Path) -> None:
    purge(str(run), "none")
    with pytest.raises(AuditError, match="pictures were removed on"):
        open_review(str(run))
    assert Ledger(str(run)).parts("review_pairs") == []


def test_numbers_below_one_are_wrong_usage(run: Path) -> None:
    for numbers in ({"most_cases": 0}, {"decoys": -1}):
        with pytest.raises(UsageError, match="must be at least 1"):
            open_review(str(run), **numbers)


def test_the_human_verdict_stands_beside_that_of_the_audit_in_sql(run: Path) -> None:
    sql = """select outcome, count(*) as n from verdicts join human_verdicts using (caption_id)
             where copied = 2 and verdict = 'verbatim' group by all"""
    assert len(query(run, "from human_verdicts")) == 0
    review = open_review(str(run), decoys=3)
    judged(review, "anna", {"case": "copy"})
    assert query(run, "select distinct outcome, raters from human_verdicts").to_pylist() == [
        {"outcome": "undecided", "raters": 0}
    ]
    judged(review, "ben", {"case": "part"})
    assert query(run, sql).to_pylist() == [{"outcome": "upheld", "n": len(CAPTIONS)}]
    assert query(run, "from human_verdicts").schema.equals(HUMAN_VERDICTS)


def test_the_report_says_that_one_rater_decides_nothing(run: Path) -> None:
    review = open_review(str(run), decoys=3)
    judged(review, "anna", dict.fromkeys(("case", "altered"), ANSWER_WORDS[0]))
    said = text_of(render(build(run)))
    assert "Nothing is upheld or overturned yet: 1 of 1 raters has judged every pair, and at least 2 must." in said
    assert "reviewers:" not in said
