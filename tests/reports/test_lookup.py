"""What a run says of an image, a URL, a host or a text that somebody asks about."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports import lookup
from tests.support.minimal import copied, place, reproduced, row, write_run

IMAGES = [place("0.tar", n, f"k{n}") for n in range(4)]
URLS = ["https://a.example.org/x.png", "http://user@EXAMPLE.org:80/y.png", "https://example.org.evil.net/z", None]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """`a cat` carries image 0 and copied it; `a dog` carries image 1 and copied 0 too; `a fox` carries 2."""
    rows = [
        row("0.parquet", n, caption, IMAGES[n]) | {"url": URLS[n]}
        for n, caption in enumerate(("a cat", "a dog", "a fox", "a hen"))
    ]
    verdicts = [reproduced("a cat", IMAGES[0], 0.9), reproduced("a dog", IMAGES[1], 0.9)]
    return write_run(tmp_path / "run", rows, verdicts, IMAGES, [copied("a dog", IMAGES[0], 0.85, "partial")])


def test_an_image_has_the_captions_that_carry_it_and_those_that_copied_it(run: Path) -> None:
    found = lookup.of_images(run, [IMAGES[0]["image_id"]]).to_pylist()
    assert [(item["caption"], item["carries"], item["copied"]) for item in found] == [
        ("a cat", True, "verbatim"),
        ("a dog", False, "partial"),
    ]
    [fox] = lookup.of_images(run, [IMAGES[2]["image_id"]]).to_pylist()
    assert (fox["caption"], fox["carries"], fox["copied"], fox["verdict"]) == ("a fox", True, None, "not_selected")
    assert len(lookup.of_images(run, ["nothing"])) == 0


def test_a_url_stands_for_its_image_whoever_copied_it(run: Path) -> None:
    assert lookup.of_url(run, str(URLS[0]))["caption"].to_pylist() == ["a cat", "a dog"]
    assert len(lookup.of_url(run, "https://a.example.org/")) == 0


def test_a_host_is_itself_and_all_below_it_and_nothing_that_only_looks_like_it(run: Path) -> None:
    assert set(lookup.of_host(run, "example.org")["caption"].to_pylist()) == {"a cat", "a dog"}
    assert lookup.of_host(run, "evil.net")["caption"].to_pylist() == ["a fox"]
    assert len(lookup.of_host(run, "ample.org")) == 0


def test_a_text_is_found_in_any_case_and_is_no_pattern(run: Path) -> None:
    assert lookup.of_text(run, "A HEN")["caption"].to_pylist() == ["a hen"]
    assert len(lookup.of_text(run, "a%")) == 0
