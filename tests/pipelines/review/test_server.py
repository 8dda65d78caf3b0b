"""The server of a review answers its own page, and nothing else."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from audit.errors import UsageError
from pipelines.review.server import HEADERS, ReviewServer
from pipelines.runs.review import Review

ANSWER = {"rater": "anna", "number": 0, "answer": "copy", "seconds": 1.5}


@pytest.fixture
def server(review: Review, serve: Callable) -> Iterator[ReviewServer]:
    with serve(review) as started:
        yield started


def ask(
    server: ReviewServer,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    token: str | None = None,
    **headers: str,
) -> tuple[int, bytes, dict[str, str]]:
    """Return status, content and headers of the response."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, f"/{server.token if token is None else token}/{path}", body, sent)
    response = connection.getresponse()
    found = response.status, response.read(), dict(response.getheaders())
    connection.close()
    return found


def post(server: ReviewServer, said: Any, **headers: str) -> int:
    return ask(server, "answer", "POST", json.dumps(said).encode(), Content_Type="application/json", **headers)[0]


def test_it_listens_on_this_machine_only(server: ReviewServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"
    assert server.address == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    assert len(server.token) >= 32


@pytest.mark.parametrize("path", ["", "page.js", "page.css", "state?rater=anna", "picture/0/left?rater=anna"])
def test_every_response_forbids_what_the_page_does_not_need(server: ReviewServer, path: str) -> None:
    status, content, headers = ask(server, path)
    assert status == 200
    assert content
    assert HEADERS.items() <= headers.items()
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["", "state?rater=anna", "picture/0/left?rater=anna"])
def test_without_the_token_there_is_nothing(server: ReviewServer, path: str) -> None:
    for token in ("", "x", server.token[:-1], server.token + "x", server.token.swapcase(), "%C3%A9"):
        assert ask(server, path, token=token)[0] == 404
    assert ask(server, "answer", "POST", json.dumps(ANSWER).encode(), "x", Content_Type="application/json")[0] == 404


def test_pages_of_other_sites_are_refused(server: ReviewServer) -> None:
    port = server.server_port
    assert ask(server, "", Host="evil.example")[0] == 403
    assert ask(server, "", Host=f"evil.example:{port}")[0] == 403
    assert ask(server, "", Host=f"localhost:{port}")[0] == 200
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}"):
        assert post(server, ANSWER, Origin=origin) == 403
    assert server.answers.of("anna")[0] is None
    assert post(server, ANSWER, Origin=f"http://127.0.0.1:{port}") == 200
    assert server.answers.of("anna")[0] == "copy"


@pytest.mark.parametrize(
    "path", ["../manifest.json", "page/page.html", "picture/0/middle?rater=anna", "picture/0", "x"]
)
def test_only_the_pages_own_paths_exist(server: ReviewServer, path: str) -> None:
    assert ask(server, path)[0] == 404


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


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 4000, b'"x"', b"{}" + b" " * 5000])
def test_a_body_that_is_no_small_json_object_is_refused(server: ReviewServer, body: bytes) -> None:
    assert ask(server, "answer", "POST", body, Content_Type="application/json")[0] == 400
    assert ask(server, "answer", "POST", b"{}", Content_Type="text/plain")[0] == 415


def test_a_page_for_one_rater_takes_no_answers_of_another(review: Review, serve: Callable) -> None:
    with serve(review, rater="anna") as server:
        assert post(server, ANSWER | {"rater": "ben"}) == 403
        assert post(server, ANSWER) == 200
        assert json.loads(ask(server, "rater")[1]) == {"rater": "anna"}


def test_a_port_that_is_taken_is_wrong_usage(server: ReviewServer) -> None:
    for port in (server.server_port, 10**6):
        with pytest.raises(UsageError, match="Choose another --port"):
            ReviewServer(server.answers, server.pictures, port=port)
