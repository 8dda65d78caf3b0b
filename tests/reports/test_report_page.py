"""The report in a real browser: table, cases, mask, widths, dark mode, accessibility, and captions that attack it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from reports.html import render
from reports.record.model import Record
from tests.support.accessibility import obstacles
from tests.support.browser import browser
from tests.support.hostile import ATTACKED, hostile

# A busy machine may take long; no test waits for a time to pass.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def report(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(record), "utf-8")
    return path


@pytest.fixture(scope="module")
def attacked(record: Record, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "attacked.html"
    path.write_text(render(hostile(record)), "utf-8")
    return path


@pytest.fixture(scope="module")
def opened(chromium: Browser, report: Path) -> Iterator[Page]:
    yield from watched(chromium, report)


@pytest.fixture
def page(opened: Page) -> Page:
    """The report as it is after loading, without loading it again."""
    opened.evaluate("location.hash = ''")
    if opened.get_by_role("button", name="Show all").is_visible():
        opened.get_by_role("button", name="Show all").click()
    return opened


def watched(chromium: Browser, path: Path) -> Iterator[Page]:
    """Open a file; fails if the browser reports an error, such as a breach of the page's policy, or sends a request."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on(
        "request", lambda request: problems.append(request.url) if request.url[:5] not in ("file:", "data:") else None
    )
    page.goto(path.as_uri())
    yield page
    page.close()
    assert [problem for problem in problems if problem != path.as_uri() and not problem.startswith("data:")] == []


def column(page: Page, number: int) -> list[str]:
    return page.locator(f"#captions tbody td:nth-child({number})").all_inner_texts()


def test_the_table_is_paged_by_mouse_and_keyboard(page: Page, record: Record) -> None:
    total = record.selected_count
    expect(page.get_by_role("status")).to_have_text(f"1 to 25 of {total} captions")
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_role("status")).to_have_text(f"26 to 50 of {total} captions")
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_have_text(f"51 to 75 of {total} captions")
    page.get_by_label("per page").select_option("100")
    expect(page.get_by_role("status")).to_have_text(f"1 to {total} of {total} captions")
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    page.get_by_label("per page").select_option("25")


def test_the_table_is_sorted_by_mouse_and_keyboard(page: Page, record: Record) -> None:
    counts = sorted((row.row_count for row in record.selected), reverse=True)
    page.get_by_role("button", name="Rows").click()
    assert column(page, 4) == [f"{count:,}" for count in counts[:25]]
    expect(page.locator("th[data-name=rows]")).to_have_attribute("aria-sort", "descending")
    page.get_by_role("button", name="Rows").focus()
    page.keyboard.press("Enter")
    assert column(page, 4) == [f"{count:,}" for count in sorted(counts)[:25]]
    expect(page.locator("th[data-name=rows]")).to_have_attribute("aria-sort", "ascending")
    page.get_by_role("button", name="Risk").click()
    risks = column(page, 1)
    assert risks == sorted(risks, key=["high", "medium", "low", "none", "unknown"].index)
    expect(page.locator("th[aria-sort]")).to_have_count(1)


def test_the_table_is_filtered_by_risk_verdict_text_and_row_count(page: Page, record: Record) -> None:
    page.get_by_role("searchbox", name="Text").fill("PHONE case")
    expect(page.get_by_role("status")).to_have_text("1 to 7 of 7 captions")
    page.get_by_role("searchbox", name="Text").fill("")
    page.get_by_label("Verdict").select_option("verbatim")
    expect(page.locator("#captions tbody tr")).to_have_count(9)
    page.get_by_label("At least").fill("60")
    expect(page.locator("#captions tbody tr")).to_have_count(4)
    page.get_by_label("Risk").select_option("low")
    expect(page.get_by_role("status")).to_have_text("0 to 0 of 0 captions")
    page.get_by_role("button", name="Show all").click()
    expect(page.get_by_role("status")).to_contain_text(f"of {record.selected_count} captions")


def test_one_case_is_shown_at_a_time_and_opens_from_the_table(page: Page, record: Record) -> None:
    expect(page.locator(".case:visible")).to_have_count(1)
    page.get_by_role("searchbox", name="Text").fill("slice of pizza")
    page.locator("#captions").get_by_role("link", name="slice of pizza").focus()
    page.keyboard.press("Enter")
    case = page.locator(".case:visible")
    expect(case).to_have_count(1)
    expect(case.get_by_role("heading")).to_contain_text("slice of pizza")
    expect(case).to_be_focused()
    number = int(re.findall(r"Case (\d+)", case.get_by_role("heading").inner_text())[0])
    case.get_by_role("link", name="Previous case").click()
    expect(page.locator(".case:visible").get_by_role("heading")).to_contain_text(f"Case {number - 1} of")
    page.go_back()
    expect(page.locator(".case:visible").get_by_role("heading")).to_contain_text("slice of pizza")


def test_the_region_can_be_switched_on_and_off(page: Page, record: Record) -> None:
    number = next(place for place, case in enumerate(record.cases, 1) if case.region)
    page.evaluate(f"location.hash = 'case-{number}'")
    box = page.locator(f"#region-{number}")
    masks = page.locator(f"#case-{number} .mask:visible")
    box.set_checked(True)
    expect(masks).to_have_count(2)
    box.focus()
    page.keyboard.press("Space")
    expect(masks).to_have_count(0)


def test_no_image_is_broken_and_the_images_of_a_case_have_one_size(page: Page) -> None:
    widths = page.evaluate(
        "Promise.all([...document.images].map((image) => image.decode().then(() => image.naturalWidth)))"
    )
    assert widths
    assert 0 not in widths
    sizes = page.locator(".case:visible .pictures img:not(.mask)").evaluate_all(
        "(images) => images.map((image) => [image.clientWidth, image.clientHeight].join())"
    )
    assert len(set(sizes)) == 1


@pytest.mark.parametrize("width", [400, 1280, 2560])
def test_the_page_does_not_scroll_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    try:
        assert page.evaluate("document.documentElement.scrollWidth") == width
    finally:
        page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, scheme: str) -> None:
    try:
        found = obstacles(page, scheme)
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    finally:
        page.emulate_media(color_scheme="light")
    assert found == []


def test_headings_are_in_order(page: Page) -> None:
    levels = [
        int(name[1]) for name in page.locator("h1, h2, h3").evaluate_all("(found) => found.map((h) => h.tagName)")
    ]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))


def test_printing_shows_every_case_and_every_caption(page: Page, record: Record) -> None:
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    expect(page.locator(".case:visible")).to_have_count(len(record.cases))
    expect(page.locator("#captions tbody tr")).to_have_count(record.selected_count)
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    expect(page.locator(".case:visible")).to_have_count(1)


def test_without_javascript_all_captions_and_cases_are_there(chromium: Browser, report: Path, record: Record) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    expect(page.locator("#captions tbody tr")).to_have_count(record.selected_count)
    expect(page.locator(".case:visible")).to_have_count(len(record.cases))
    expect(page.locator("#filters")).to_be_hidden()
    context.close()


def test_hostile_captions_run_nothing(chromium: Browser, attacked: Path, record: Record) -> None:
    for page in watched(chromium, attacked):
        expect(page.get_by_role("status")).to_contain_text("captions")
        for number in range(1, len(record.cases) + 1):
            page.evaluate(f"location.hash = 'case-{number}'")
            expect(page.locator(f"#case-{number}")).to_be_visible()
        assert page.evaluate(ATTACKED) is None
        assert page.evaluate("document.scripts.length") == 1
        assert page.evaluate("document.documentElement.scrollWidth") == 1280
        shown = page.locator("body").inner_text()
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u0000-\u0008]", shown)
