"""Answers are on disk when they are given, and every rater has an order of their own."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from audit.errors import UsageError
from audit.record.ledger import Ledger
from audit.schema import REVIEWS
from pipelines.review.answers import Answers, rater_named
from pipelines.review.pairs import pair
from pipelines.runs.review import Review
from reports.query import query

PAIRS = pa.Table.from_pylist([pair("case", f"image {n}", f"caption {n}", 1) for n in range(20)])


@pytest.mark.parametrize("uri", ["run", "memory://review-answers/run"])
def test_an_answer_is_stored_when_it_is_given(uri: str, tmp_path: Path) -> None:
    uri = uri if "://" in uri else str(tmp_path / uri)
    answers = Answers(Ledger(uri), PAIRS)
    answers.give("anna", 3, "part", 2.5)
    answers.give("ben", 0, "unsure", 1.0)
    again = Answers(Ledger(uri), PAIRS)
    assert again.of("anna") == [None, None, None, "part", *[None] * 16]
    table = Ledger(uri).read("reviews")
    assert table.schema.equals(REVIEWS)
    [row] = [row for row in table.to_pylist() if row["rater"] == "anna"]
    assert row["pair"] == again.order("anna")[3]
    assert (row["seconds"], row["changes"], row["pair_type"]) == (2.5, 0, "case")


def test_the_last_answer_holds_and_changes_are_counted(tmp_path: Path) -> None:
    answers = Answers(Ledger(str(tmp_path)), PAIRS)
    for word in ("copy", "copy", "part", "no copy"):
        answers.give("anna", 0, word, 1.0)
    [row] = Ledger(str(tmp_path)).read("reviews").to_pylist()
    assert (row["answer"], row["changes"]) == ("no copy", 2)


def test_two_processes_for_one_rater_lose_no_answer(tmp_path: Path) -> None:
    one, other = (Answers(Ledger(str(tmp_path)), PAIRS) for _ in range(2))
    one.give("anna", 0, "copy", 1.0)
    other.give("anna", 1, "part", 1.0)
    one.give("anna", 2, "unsure", 1.0)
    assert one.of("anna")[:4] == other.of("anna")[:4] == ["copy", "part", "unsure", None]


def test_every_rater_sees_all_pairs_in_an_order_that_stays(tmp_path: Path) -> None:
    answers, again = (Answers(Ledger(str(tmp_path)), PAIRS.take(order)) for order in ([*range(20)], [*range(20)][::-1]))
    assert answers.order("anna") == again.order("anna")
    assert answers.order("anna") != answers.order("ben")
    assert sorted(answers.order("anna")) == sorted(PAIRS["pair"].to_pylist())


def test_a_rater_has_a_name_that_every_file_system_takes() -> None:
    assert rater_named(" Anna-2 ") == "anna-2"
    for name in ("", "..", "a/b", "a.b", "-a", "_a", "ä", "a" * 41, "a\nb"):
        with pytest.raises(UsageError, match="is not a name for a rater"):
            rater_named(name)


def test_answers_can_be_queried(review: Review) -> None:
    review.answers.give("anna", 0, "copy", 1.0)
    review.answers.give("ben", 0, "unsure", 1.0)
    found = query(review.ledger.uri, "select rater, answer from reviews order by rater")
    assert found.to_pylist() == [{"rater": "anna", "answer": "copy"}, {"rater": "ben", "answer": "unsure"}]
