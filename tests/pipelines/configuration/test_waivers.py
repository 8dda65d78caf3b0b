"""A file of waivers is read as a whole, or refused with the entries that are wrong."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from audit.errors import UsageError
from pipelines.configuration.waivers import read_waivers

TODAY = date(2027, 3, 1)
SOUND = """
- family: 0a
  reason: logo
  owner: Legal <legal@example.org>
  expires: 2027-03-01
- image_id: 0b
  reason: other
  text: licensed from the photographer
  owner: Ada
  expires: "2028-01-01"
"""


def refusal(path: Path, content: str) -> str:
    """Return the message with which a file is refused."""
    path.write_text(content, "utf-8")
    with pytest.raises(UsageError) as refused:
        read_waivers(path, TODAY)
    return str(refused.value)


def test_a_waiver_holds_until_the_end_of_its_last_day(tmp_path: Path) -> None:
    path = tmp_path / "waivers.yaml"
    path.write_text(SOUND, "utf-8")
    logo, licensed = read_waivers(path, TODAY)
    assert (logo.covers, logo.grounds, logo.owner) == ("family 0a", "logo", "Legal <legal@example.org>")
    assert (licensed.covers, licensed.grounds) == ("image_id 0b", "other: licensed from the photographer")
    with pytest.raises(UsageError, match="entry 1: the waiver for family 0a expired on 2027-03-01"):
        read_waivers(path, date(2027, 3, 2))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("reason: logo, owner: a, expires: 2027-04-01", "names nothing; name exactly one of"),
        ("family: x, image_id: y, reason: logo, owner: a, expires: 2027-04-01", "names family, image_id"),
        ("family: x, reason: other, owner: a, expires: 2027-04-01", "`other` needs a text"),
        ("family: x, reason: nice, owner: a, expires: 2027-04-01", "reason: Input should be 'logo'"),
        ("family: x, reason: logo, expires: 2027-04-01", "owner is missing"),
        ("family: x, reason: logo, owner: a", "expires is missing"),
        ("family: x, reason: logo, owner: a, expires: 2027-02-30", "expires: Input should be a valid date"),
        ("family: x, reason: logo, owner: a, expires: 2027-04-01, why: x", "why is not a known key"),
        ("family: 12, reason: logo, owner: a, expires: 2027-04-01", "family: Input should be a valid string"),
    ],
)
def test_a_malformed_entry_is_named(tmp_path: Path, entry: str, problem: str) -> None:
    path = tmp_path / "waivers.yaml"
    said = refusal(path, f"- {{family: 0a, reason: flag, owner: b, expires: 2027-09-09}}\n- {{{entry}}}\n")
    assert said.startswith(f"{path}: entry 2: ")
    assert problem in said


def test_all_problems_are_one_message(tmp_path: Path) -> None:
    said = refusal(tmp_path / "w.yaml", "- 3\n- {family: x, reason: logo, owner: a, expires: 2026-04-01}\n")
    assert "entry 1: " in said
    assert "entry 2: the waiver for family x expired on 2026-04-01" in said


@pytest.mark.parametrize("content", ["", "waivers: []", "text"])
def test_another_document_is_refused(tmp_path: Path, content: str) -> None:
    assert "is not a list of waivers" in refusal(tmp_path / "w.yaml", content)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: no such file"):
        read_waivers(tmp_path / "none.yaml")
