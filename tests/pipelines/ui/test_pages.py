"""The pages in a real browser: what a reader finds, at every width, in light and dark, and with hostile captions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

from pipelines.ui.server import UiServer
from reports.query import query
from tests.support.accessibility import obstacles
from tests.support.browser import browser
from tests.support.changed_run import change_manifest
from tests.support.hostile import ATTACKED, ATTACKS
from tests.support.report_run import build
from tests.support.serving import serving

# A busy machine may take long; no test waits for a time to pass.
expect.set_options(timeout=60_000)
ALL = "select c.caption, r.key, r.url, e.message from captions c left join rows r using (caption_id), errors e limit 30"
PAGES = ["", "captions?page=2", "image", f"sql?sql={quote(ALL)}", "sql?sql=drop", "nothing"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def opened(chromium: Browser) -> Iterator[tuple[Page, list[str]]]:
    """A page for all tests, with the errors that the browser reports and the addresses on other servers it asks."""
    page = chromium.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text))
    page.on("request", lambda request: problems.append(request.url) if not request.url.startswith(LOCAL) else None)
    yield page, problems
    page.close()


@pytest.fixture
def page(opened: tuple[Page, list[str]], attacked: UiServer) -> Iterator[Page]:
    """The first page of the attacked run. The test fails if the browser reports an error or asks another server."""
    page, problems = opened
    problems.clear()
    page.set_viewport_size({"width": 1280, "height": 900})
    page.emulate_media(color_scheme="light")
    page.goto(attacked.address)
    yield page
    refused = "Failed to load resource: the server responded with a status of 404"  # of the page `nothing`
    assert [problem for problem in problems if not problem.startswith(refused)] == []


LOCAL = ("http://127.0.0.1:", "data:")


def test_a_search_finds_a_caption_beyond_the_top(page: Page) -> None:
    page.get_by_role("link", name="Captions").click()
    expect(page.get_by_role("status")).to_contain_text("318 captions, page 1 of 7")
    page.get_by_label("Contains").fill("CAPTION number 299")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("1 caption.")
    page.get_by_role("link", name="ordinary caption number 299").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("ordinary caption number 299")
    expect(page.locator("main")).to_contain_text("not_selected not looked at")
    expect(page.locator("main")).to_contain_text("3 rows carry this caption.")


def test_the_page_of_a_copy_has_its_images_and_matches(page: Page) -> None:
    page.get_by_role("link", name="slice of pizza").click()
    expect(page.locator("main")).to_contain_text("verbatim a generated image is a copy")
    images = page.locator(".pictures img")
    expect(images).to_have_count(6)  # the training image, one generation and four fresh ones
    assert all(images.evaluate_all("all => all.map((image) => image.naturalWidth)"))
    expect(page.get_by_text("Training image, blurred")).to_be_visible()
    expect(page.get_by_role("region", name="Matches").locator("tbody tr")).to_have_count(10)


def test_sql_is_answered_and_changes_nothing(page: Page, attacked_run: Path) -> None:
    page.get_by_role("link", name="SQL").click()
    page.locator("textarea").fill("select caption, score from verdicts order by score desc, caption_id")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("status")).to_contain_text("The first 200 rows of more.")
    expect(page.locator("tbody tr")).to_have_count(200)
    with page.expect_download() as download:
        page.get_by_role("link", name="Download as CSV").click()
    with open(download.value.path(), encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == query(
        attacked_run, "select caption from verdicts order by score desc, caption_id"
    )["caption"].to_pylist()
    page.locator("textarea").fill("delete from verdicts")
    page.get_by_role("button", name="Run").click()
    expect(page.get_by_role("alert")).to_contain_text("changes nothing")
    expect(page.locator("textarea")).to_have_value("delete from verdicts")


@pytest.mark.slow
def test_an_image_that_is_uploaded_finds_its_match(finished: Path, chromium: Browser) -> None:
    [image] = query(finished, "select image from evidence order by image_id limit 1")["image"].to_pylist()
    server, page = UiServer(str(finished)), chromium.new_page()
    with serving(server):
        page.goto(f"{server.address}image")
        page.get_by_label("Image").set_input_files({"name": "<b>.png", "mimeType": "image/png", "buffer": image})
        page.get_by_role("button", name="Look it up").click()
        expect(page.get_by_role("heading", level=2)).to_have_text("<b>.png")
        expect(page.locator(".note")).to_have_text("This picture is among the training images.")
        nearest = page.get_by_role("region", name="Nearest training images").locator("tbody tr").first
        expect(nearest).to_contain_text("1.000")
        expect(page.get_by_role("region", name="Captions")).to_contain_text("copied it (verbatim)")
    page.close()


@pytest.mark.slow
def test_captions_cannot_attack_the_pages(page: Page, attacked: UiServer, attacked_run: Path) -> None:
    captions = query(attacked_run, "select caption, caption_id from captions").to_pylist()
    of_captions = {row["caption"]: f"caption?id={row['caption_id']}" for row in captions if row["caption"] in ATTACKS}
    for path in [*PAGES, *of_captions.values()]:
        page.goto(f"{attacked.address}{path}")
        assert page.evaluate(f"{ATTACKED}") is None, path
        assert "\u202e" not in page.content(), path
    assert of_captions.keys() == set(ATTACKS)


@pytest.mark.slow
def test_every_page_fits_and_can_be_used_by_everybody(page: Page, attacked: UiServer, attacked_run: Path) -> None:
    [id_] = query(attacked_run, "select caption_id from verdicts where risk = 'high' limit 1")["caption_id"].to_pylist()
    for path in [*PAGES, f"caption?id={id_}"]:
        page.goto(f"{attacked.address}{path}")
        for width, scheme in ((400, "light"), (1280, "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{path} at {width} pixels"
            assert obstacles(page, scheme) == [], (path, scheme)  # type: ignore[arg-type]


def test_the_report_runs_apart_from_the_pages(page: Page) -> None:
    page.get_by_role("link", name="Report", exact=True).click()
    expect(page.locator("html.js, .js")).not_to_have_count(0)  # its script ran
    assert page.evaluate("origin") == "null"  # and can read none of these pages


def test_pages_work_without_javascript(chromium: Browser, attacked: UiServer) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(attacked.address)
    expect(page.get_by_text("finished at")).to_be_visible()
    page.get_by_role("link", name="Captions").click()
    page.get_by_label("Verdict").select_option("partial")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("status")).to_contain_text("7 captions.")
    context.close()


def test_the_first_page_follows_a_run(chromium: Browser, tmp_path: Path) -> None:
    run = tmp_path / "run"
    build(run)
    now = {"at": "2026-01-02T03:04:06+00:00", "stage": "screen", "step": "screen", "unit": "captions", "total": 318}
    change_manifest(run, finished=None, progress=now | {"done": 100})
    server, page = UiServer(str(run)), chromium.new_page()
    with serving(server):
        page.clock.install()
        page.goto(server.address)
        expect(page.locator(".state")).to_contain_text("screen: 100 of 318 captions")
        change_manifest(run, progress=now | {"done": 200, "per_second": 12.0})
        page.clock.run_for(4000)
        expect(page.locator(".state")).to_contain_text("screen: 200 of 318 captions, 12/s")
        finished = json.loads((run / "manifest.json").read_text())["started"]
        change_manifest(run, finished=finished, progress=None)
        page.clock.run_for(4000)
        expect(page.locator(".state")).to_contain_text(f"finished at {finished}")
    page.close()
