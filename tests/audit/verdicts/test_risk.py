import pytest

from audit.verdicts.risk import risk


@pytest.mark.parametrize(
    ("verdict", "row_count", "k", "n", "expected"),
    [
        ("verbatim", 80, 4, 4, "high"),
        ("verbatim", 80, 1, 4, "medium"),
        ("verbatim", 80, 0, 4, "low"),
        ("verbatim", 80, None, None, "medium"),
        ("verbatim", 1, 0, 4, "low"),  # once, but no fresh seed says so
        ("verbatim", 1, 1, 4, "high"),
        ("verbatim", 1, None, None, "medium"),
        ("partial", 1, None, None, "low"),
        ("partial", 1, 0, 4, "low"),
        ("partial", 80, 16, 16, "medium"),
        ("partial", 80, 0, 4, "low"),
        ("partial", 1, 16, 16, "high"),
        ("unconfirmed", 1, None, None, "low"),
        ("not_selected", 1, None, None, "none"),
        ("unknown", 1, None, None, "unknown"),
        ("error", 1, None, None, "unknown"),
    ],
)
def test_risk_follows_its_table(verdict: str, row_count: int, k: int | None, n: int | None, expected: str) -> None:
    assert risk(verdict, row_count, k, n) == expected


@pytest.mark.parametrize("verdict", ["verbatim", "partial"])
@pytest.mark.parametrize("row_count", [1, 2, 500])
@pytest.mark.parametrize("n", [1, 4, 16])
def test_what_no_fresh_seed_reproduces_is_a_low_risk(verdict: str, row_count: int, n: int) -> None:
    assert risk(verdict, row_count, 0, n) == "low"


def test_an_image_that_has_duplicates_under_other_captions_does_not_occur_once() -> None:
    assert risk("verbatim", 1, 1, 4, image_cluster_size=1) == risk("verbatim", 1, 1, 4) == "high"
    assert risk("verbatim", 1, 1, 4, image_cluster_size=50) == risk("verbatim", 50, 1, 4, 1) == "medium"
