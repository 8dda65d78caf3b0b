"""Only a browser of this machine that has the address gets anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aiohttp import web

from audit.errors import AuditError, UsageError
from pipelines.web.local_server import HEADERS, LOOPBACK, LocalServer
from tests.support.serving import ask, serving


async def hello(request: web.Request) -> web.Response:
    return web.Response(text=f"hello, {len(await request.read())} bytes")


async def failing(request: web.Request) -> web.Response:
    raise AuditError("the run is gone", where="<run>", hint="Look for it.")


ROUTES = [web.get("", hello), web.post("", hello), web.get("failing", failing)]


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    server = LocalServer(ROUTES, most_bytes=100)
    with serving(server):
        yield server


def test_it_listens_on_this_machine_only(server: LocalServer) -> None:
    assert server._socket.getsockname() == (LOOPBACK, server.port)
    assert server.address == f"http://127.0.0.1:{server.port}/{server.token}/"
    assert len(server.token) >= 32
    assert LocalServer(ROUTES).token != server.token


@pytest.mark.parametrize("path", ["", "failing", "no/such/page"])
def test_without_the_token_there_is_nothing(server: LocalServer, path: str) -> None:
    for token in ("", "x", server.token[:-1], server.token + "x", server.token.swapcase(), "%C3%A9"):
        assert ask(server, path, token=token).status == 403


def test_pages_of_other_sites_are_refused(server: LocalServer) -> None:
    for host in ("evil.example", f"evil.example:{server.port}", LOOPBACK, f"{LOOPBACK}:1"):
        assert ask(server, "", Host=host).status == 403
    assert ask(server, "", Host=f"localhost:{server.port}").status == 200
    for origin in ("http://evil.example", "null", f"https://127.0.0.1:{server.port}"):
        assert ask(server, "", "POST", Origin=origin).status == 403
    assert ask(server, "", "POST", Origin=f"http://127.0.0.1:{server.port}").status == 200


@pytest.mark.parametrize(("path", "status"), [("", 200), ("failing", 500), ("no/such/page", 404)])
def test_every_response_forbids_what_pages_do_not_need(server: LocalServer, path: str, status: int) -> None:
    answer = ask(server, path, Origin=f"http://127.0.0.1:{server.port}")
    assert answer.status == status
    assert HEADERS.items() <= answer.headers.items()
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]  # no CORS


def test_a_body_is_read_up_to_its_limit(server: LocalServer) -> None:
    assert ask(server, "", "POST", b"x" * 100).text == "hello, 100 bytes"
    assert ask(server, "", "POST", b"x" * 101).status == 413


def test_an_error_of_the_run_is_explained(server: LocalServer) -> None:
    assert ask(server, "failing").text == "<run>: the run is gone"
    page = LocalServer(ROUTES, explain=lambda message: f"<p>{message.partition(': ')[2]}</p>")
    with serving(page):
        answer = ask(page, "failing")
    assert answer.status == 500
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.text.startswith("<p>the run is gone")


def test_a_port_that_is_taken_is_wrong_usage(server: LocalServer) -> None:
    for port in (server.port, 10**6):
        with pytest.raises(UsageError, match="Choose another --port"):
            LocalServer(ROUTES, port)
