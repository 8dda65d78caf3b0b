"""The page in a real browser, by keyboard: raters with planted errors are judged rightly, and can stop and go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from sklearn.metrics import cohen_kappa_score

from audit.duplicates.captions import caption_id
from audit.schema import NEGATIVE_DECOYS
from audit.statistics.raters import agreements, raters, upheld
from pipelines.runs.review import Review, open_review
from reports.check import check
from reports.html import render
from reports.record.build import build
from tests.support.browser import browser
from tests.support.markup import text_of
from tests.support.reviewed import CAPTIONS, COPIES

# A busy machine may take long; no test waits for a time to pass.
expect.set_options(timeout=60_000)
KEYS = {"copy": "c", "part": "p", "no copy": "n", "unsure": "u"}
# How much two pictures differ, as anybody who looks at the screen can see: mean over 8 x 8 tiles, 0 to 255.
DIFFERENCE = """() => {
  const pixels = ["left", "right"].map((side) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 8;
    const context = canvas.getContext("2d");
    context.drawImage(document.getElementById(side), 0, 0, 8, 8);
    return context.getImageData(0, 0, 8, 8).data;
  });
  return pixels[0].reduce((sum, value, at) => sum + Math.abs(value - pixels[1][at]), 0) / 192;
}"""
ALIKE = 25


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture
def review(own_run: Path) -> Review:
    """The review of six captions of the audit sample, four of which are copies, and 8 decoys, two of which are."""
    return open_review(str(own_run), most_cases=6, decoys=6)


@pytest.fixture
def short(own_run: Path) -> Review:
    """A review of seven pairs."""
    return open_review(str(own_run), most_cases=3, decoys=3)


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page that fails the test if the browser reports an error, such as a breach of the page's policy."""
    opened = chromium.new_page(viewport={"width": 1200, "height": 800})
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    lost = "Failed to load resource"  # requests that a test refuses or cuts off
    yield opened
    opened.close()
    assert [problem for problem in problems if not problem.startswith(lost)] == []


def shows(page: Page, number: int) -> None:
    """Wait until the page shows a pair and accepts an answer."""
    expect(page.locator(f"body[data-state=judging][data-number='{number}']:not(.busy)")).to_be_visible()


def enter(page: Page, address: str, rater: str) -> None:
    page.goto(address)
    page.get_by_label("Name").fill(rater)
    page.keyboard.press("Enter")
    expect(page.locator("#who")).to_have_text(f"rater {rater}")


def look(page: Page) -> str:
    """Judge the pair on the screen by its pixels."""
    return "copy" if page.evaluate(DIFFERENCE) < ALIKE else "no copy"


def judge(page: Page, review: Review, rater: str, planted: dict[str, str], stop: int | None = None) -> None:
    """Answer the pairs that have no answer, as a rater who looks, but errs on the planted pairs."""
    order, given = review.answers.order(rater), review.answers.of(rater)
    for number in [number for number, answer in enumerate(given) if answer is None][:stop]:
        shows(page, number)
        page.keyboard.press(KEYS[planted.get(order[number]) or look(page)])


def of_type(review: Review, *kinds: str) -> list[str]:
    return [row["pair"] for row in review.pairs.to_pylist() if row["pair_type"] in kinds]


def case_of(review: Review, number: int) -> str:
    ident = caption_id(CAPTIONS[number])
    [found] = [
        row["pair"] for row in review.pairs.to_pylist() if (row["pair_type"], row["caption_id"]) == ("case", ident)
    ]
    return found


@pytest.mark.slow
def test_two_raters_with_planted_errors_are_judged_rightly(
    own_run: Path, review: Review, page: Page, serve: Callable
) -> None:
    negative, positive = of_type(review, *NEGATIVE_DECOYS), of_type(review, "altered")
    planted = {
        # One decoy deceives both raters, another only the first.
        "anna": {negative[0]: "copy", negative[1]: "part", positive[0]: "no copy", case_of(review, 2): "unsure"},
        "ben": {negative[0]: "part", case_of(review, 0): "part", case_of(review, COPIES): "copy"},
    }
    with serve(review) as server:
        for rater in planted:
            enter(page, server.address, rater)
            judge(page, review, rater, planted[rater])
            expect(page.get_by_role("heading", name=f"All {len(review.pairs)} pairs are judged.")).to_be_visible()
    table = review.ledger.read("reviews")
    anna, ben = raters(review.pairs, table)
    assert (anna.name, ben.name) == ("anna", "ben")
    assert (anna.false_positive.k, anna.false_positive.n) == (2, 6)
    assert (anna.false_negative.k, anna.false_negative.n) == (1, 2)
    assert (ben.false_positive.k, ben.false_negative.k) == (1, 0)
    decision = upheld(review.pairs, table)
    true = {caption_id(text) for text in CAPTIONS[:COPIES:2]}
    assert decision.caption_ids == true - {caption_id(CAPTIONS[2])}
    assert (decision.false_positive, decision.false_negative) == ((1, 6), (1, 2))
    said = {name: dict(zip(review.answers.order(name), review.answers.of(name), strict=True)) for name in planted}
    short = {"copy": "yes", "part": "yes"}
    [agreement] = agreements(table)
    one, other = ([short.get(said[name][pair], said[name][pair]) for pair in sorted(said[name])] for name in planted)
    assert agreement.kappa.value == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)
    report = text_of(render(build(own_run)))
    assert "3 upheld, 1 overturned, 2 undecided" in report
    assert "reviewers: upheld (2 of 2)" in report
    assert [result for result in check(own_run) if "review" in result.name and not result.ok] == []


@pytest.mark.slow
def test_a_rater_who_stops_goes_on_later_in_the_same_order_and_may_change_an_answer(
    own_run: Path, short: Review, page: Page, serve: Callable
) -> None:
    with serve(short) as server:
        enter(page, server.address, "anna")
        judge(page, short, "anna", {}, stop=4)
        shows(page, 4)
        page.reload()
        shows(page, 4)
    stored = short.answers.of("anna")
    assert None not in stored[:4]
    assert stored[4:] == [None] * (len(short.pairs) - 4)
    again = open_review(str(own_run))
    assert again.pairs.equals(short.pairs)
    with serve(again) as server:
        enter(page, server.address, "anna")
        shows(page, 4)
        page.keyboard.press("ArrowLeft")
        shows(page, 3)
        expect(page.locator(".given")).to_have_attribute("data-answer", stored[3])
        page.keyboard.press("Backspace")
        shows(page, 2)
        page.keyboard.press("4")
        shows(page, 4)
        page.keyboard.press("ArrowRight")  # there is no answer yet to go forward from
        shows(page, 4)
        judge(page, again, "anna", {})
        expect(page.locator("body[data-state=done]")).to_be_visible()
    changed = [row for row in again.ledger.read("reviews").to_pylist() if row["changes"]]
    assert [(row["pair"], row["answer"]) for row in changed] == [(again.answers.order("anna")[2], "unsure")]
    assert again.answers.of("anna")[:4] == [stored[0], stored[1], "unsure", stored[3]]


def test_the_page_does_not_tell_what_a_pair_is(short: Review, page: Page, serve: Callable) -> None:
    seen: list[str] = []
    page.on(
        "response", lambda response: seen.append(response.url + (response.text() if "state" in response.url else ""))
    )
    with serve(short, rater="anna") as server:
        page.goto(server.address)
        sides = set()
        for number in range(len(short.pairs)):
            shows(page, number)
            sizes = page.evaluate("['left', 'right'].map((side) => document.getElementById(side).naturalWidth)")
            assert sizes[0] == sizes[1]
            sides.add(short.pictures[short.answers.order("anna")[number]][0] == server.picture("anna", number, "left"))
            page.get_by_role("button", name="Unsure").click()
        expect(page.locator("body[data-state=done]")).to_be_visible()
        shown = page.content() + "".join(seen)
    assert sides == {True, False}
    for column in ("pair", "pair_type", "caption_id", "image_id"):
        assert not [value for value in short.pairs[column].drop_null().to_pylist() if value in shown]
    assert not [text for text in CAPTIONS if text in shown]


def test_an_answer_that_is_not_stored_is_not_counted(review: Review, page: Page, serve: Callable) -> None:
    with serve(review, rater="anna") as server:
        page.goto(server.address)
        shows(page, 0)
        page.route("**/answer", lambda route: route.abort())
        page.keyboard.press("c")
        expect(page.get_by_role("alert")).to_contain_text("crossaudit does not answer")
        shows(page, 0)
        page.unroute("**/answer")
        page.keyboard.press("n")
        shows(page, 1)
        expect(page.locator("#error")).to_be_empty()
    assert review.answers.of("anna")[:2] == ["no copy", None]


def test_a_key_held_down_judges_one_pair(review: Review, page: Page, serve: Callable) -> None:
    with serve(review, rater="anna") as server:
        page.goto(server.address)
        shows(page, 0)
        page.keyboard.down("c")
        shows(page, 1)
        page.keyboard.down("c")  # the second event of a key that is down is a repetition
        page.keyboard.up("c")
        page.keyboard.press("u")
        shows(page, 2)
    assert review.answers.of("anna")[:3] == ["copy", "unsure", None]


def test_a_name_that_cannot_be_a_file_is_refused_on_the_page(review: Review, page: Page, serve: Callable) -> None:
    with serve(review) as server:
        page.goto(f"{server.address}?rater=../anna")
        expect(page.get_by_role("alert")).to_contain_text("is not a name for a rater")
        page.get_by_label("Name").fill("Anna")
        page.keyboard.press("Enter")
        shows(page, 0)
        expect(page.locator("#who")).to_have_text("rater anna")


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(own_run: Path, page: Page) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "review", str(own_run), "--rater", "Ben", "--decoys", "3"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    # A shell ignores interrupts in what it starts in the background, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stdout is not None
            drawn, address = process.stdout.readline(), process.stdout.readline()
            counts = "12 confirmed captions, 3 decoys that are not copies (3 of control captions), 1 that are"
            assert drawn == f"16 pairs: {counts}\n"
            page.goto(address.removeprefix("Open ").strip())
            shows(page, 0)
            page.keyboard.press("c")
            shows(page, 1)
            process.send_signal(signal.SIGINT)
            rest, complaint = process.communicate(timeout=60)
        finally:
            process.kill()  # does nothing to a process that has ended
    assert process.returncode == 0, complaint
    assert "ben: 1 of 16 pairs judged" in rest
    assert f"Next: crossaudit report {own_run}" in rest
