"""The server of a review answers its own page, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipelines.review.server import ReviewServer
from pipelines.runs.review import Review
from pipelines.web.local_server import HEADERS
from tests.support.serving import ask

ANSWER = {"rater": "anna", "number": 0, "answer": "copy", "seconds": 1.5}


@pytest.fixture
def server(review: Review, serve: Callable) -> Iterator[ReviewServer]:
    with serve(review) as started:
        yield started


def post(server: ReviewServer, said: Any, **headers: str) -> int:
    return ask(server, "answer", "POST", json.dumps(said).encode(), Content_Type="application/json", **headers).status


@pytest.mark.parametrize("path", ["", "page.js", "page.css", "state?rater=anna", "picture/0/left?rater=anna"])
def test_every_response_forbids_what_the_page_does_not_need(server: ReviewServer, path: str) -> None:
    status, content, headers = ask(server, path)
    assert status == 200
    assert content
    assert HEADERS.items() <= headers.items()


def test_an_answer_that_another_site_sends_is_not_stored(server: ReviewServer) -> None:
    assert post(server, ANSWER, Origin="http://evil.example") == 403
    assert server.answers.of("anna")[0] is None
    assert post(server, ANSWER, Origin=f"http://127.0.0.1:{server.port}") == 200
    assert server.answers.of("anna")[0] == "copy"


@pytest.mark.parametrize(
    "path", ["../manifest.json", "page/page.html", "picture/0/middle?rater=anna", "picture/0", "x"]
)
def test_only_the_pages_own_paths_exist(server: ReviewServer, path: str) -> None:
    assert ask(server, path).status == 404


@pytest.mark.parametrize(
    "change",
    [
        {"answer": "yes"},
        {"answer": None},
        {"number": 10**6},
        {"number": -1},
        {"number": True},
        {"number": 0.5},
        {"rater": "../anna"},
        {"rater": None},
        {"seconds": "1"},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": 10**400},
        {"seconds": True},
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(server: ReviewServer, change: dict[str, Any]) -> None:
    assert post(server, ANSWER | change) in (400, 404)
    assert server.answers.of("anna")[0] is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 4000, b'"x"', b"\xff"])
def test_a_body_that_is_no_small_json_object_is_refused(server: ReviewServer, body: bytes) -> None:
    assert ask(server, "answer", "POST", body, Content_Type="application/json").status == 400
    assert ask(server, "answer", "POST", b"{}", Content_Type="text/plain").status == 415
    assert ask(server, "answer", "POST", b"{}" + b" " * 5000, Content_Type="application/json").status == 413


def test_a_page_for_one_rater_takes_no_answers_of_another(review: Review, serve: Callable) -> None:
    with serve(review, rater="anna") as server:
        assert post(server, ANSWER | {"rater": "ben"}) == 403
        assert post(server, ANSWER) == 200
        assert json.loads(ask(server, "rater").content) == {"rater": "anna"}
