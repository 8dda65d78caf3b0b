"""Serve the page on which raters judge pairs, on 127.0.0.1 and behind a token in the address.

Other users of the machine cannot guess the address, and pages of other sites cannot reach it: requests with another
Host or Origin are refused (DNS rebinding), and the answers to all requests forbid what the page does not need.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs

from audit.errors import AuditError, UsageError, first_line
from audit.schema import ANSWER_WORDS
from pipelines.review.answers import Answers, rater_named
from pipelines.review.pairs import shuffled
from pipelines.review.pictures import Pictures

LOOPBACK = "127.0.0.1"
FILES = {
    "": ("page.html", "text/html"),
    "page.css": ("page.css", "text/css"),
    "page.js": ("page.js", "text/javascript"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MOST_BYTES = 4096
SIDES = ("left", "right")
# A connection that sends nothing for so many seconds is closed.
SILENCE = 60.0


class RequestError(Exception):
    """A request that is answered by a status and a message."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class ReviewServer(ThreadingHTTPServer):
    """The server of one review. `serve_forever` runs it, `address` is what raters open.

    Args:
        answers: Where answers go.
        pictures: The pictures of each pair: the generation, then the training image.
        rater: The only rater who may answer; None asks on the page.
        port: The port; 0 for any free one.

    Raises:
        UsageError: The port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(self, answers: Answers, pictures: dict[str, Pictures], rater: str | None = None, port: int = 0):
        self.answers, self.pictures, self.rater = answers, pictures, rater
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"port {port}: {error}", hint="Choose another --port, or leave it out.") from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors of the server itself, but not that a browser closed a connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """The address of the page, with its token."""
        return f"http://{LOOPBACK}:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> Sequence[str]:
        """The Host headers to accept."""
        return [f"{name}:{self.server_port}" for name in (LOOPBACK, "localhost")]

    def state(self, rater: str) -> dict[str, Any]:
        """Return what the page needs to know: the rater and their answers, in order."""
        return {"rater": rater, "answers": self.answers.of(rater)}

    def picture(self, rater: str, number: int, side: str) -> bytes:
        """Return the left or the right picture of a pair. Which of them was generated differs by pair and rater."""
        pair = self.answers.order(rater)[number]
        swapped = int(shuffled("side", rater, pair), 16) % 2
        return self.pictures[pair][SIDES.index(side) ^ swapped]


class _Handler(BaseHTTPRequestHandler):
    server: ReviewServer
    server_version, sys_version = "crossaudit", ""
    protocol_version = "HTTP/1.1"
    timeout = SILENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the terminal shows the address, and the answers are in the run."""

    def _answer(self, respond: Callable[[str], tuple[str, bytes]]) -> None:
        try:
            kind, content = respond(self._path())
            status = HTTPStatus.OK
        except RequestError as refusal:
            status, kind, content = refusal.status, "text/plain", str(refusal).encode()
        except (AuditError, OSError) as error:
            status, kind, content = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", first_line(error).encode()
        if status is not HTTPStatus.OK:
            self.close_connection = True  # the body of the request may be unread
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _path(self) -> str:
        """Return the path behind the token. Raises RequestError for requests that do not come from the page."""
        if self.headers.get("Host") not in self.server.hosts:
            raise RequestError(HTTPStatus.FORBIDDEN, "unknown host: open the address that crossaudit printed")
        origin = self.headers.get("Origin")
        if origin is not None and origin not in [f"http://{host}" for host in self.server.hosts]:
            raise RequestError(HTTPStatus.FORBIDDEN, "this request comes from another site")
        _, _, rest = self.path.partition("?")[0].partition("/")
        token, slash, path = rest.partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()) or not slash:
            raise RequestError(HTTPStatus.NOT_FOUND, "not found: open the address that crossaudit printed")
        return path

    def _get(self, path: str) -> tuple[str, bytes]:
        if path in FILES:
            name, kind = FILES[path]
            return kind, _file(name)
        if path == "state":
            return _json(self.server.state(self._rater(self._query("rater"))))
        parts = path.split("/")
        if len(parts) == 3 and parts[0] == "picture" and parts[2] in SIDES:
            rater = self._rater(self._query("rater"))
            content = self.server.picture(rater, self._number(parts[1]), parts[2])
            return ("image/png" if content.startswith(b"\x89PNG") else "image/jpeg"), content
        if path == "rater":
            return _json({"rater": self.server.rater})
        raise RequestError(HTTPStatus.NOT_FOUND, "not found")

    def _post(self, path: str) -> tuple[str, bytes]:
        if path != "answer":
            raise RequestError(HTTPStatus.NOT_FOUND, "not found")
        said = self._body()
        rater, number = self._rater(said.get("rater")), self._number(said.get("number"))
        seconds: Any = said.get("seconds")
        if said.get("answer") not in ANSWER_WORDS:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"the answer must be one of {', '.join(ANSWER_WORDS)}")
        if type(seconds) not in (int, float) or not 0 <= seconds < 1e9:
            raise RequestError(HTTPStatus.BAD_REQUEST, "seconds must be a number from 0")
        self.server.answers.give(rater, number, said["answer"], float(seconds))
        return _json({"number": number, "answer": said["answer"]})

    def _body(self) -> dict[str, Any]:
        if self.headers.get_content_type() != "application/json":
            raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON")
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MOST_BYTES:
            raise RequestError(HTTPStatus.BAD_REQUEST, f"send at most {MOST_BYTES} bytes, and say how many")
        try:
            said = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            raise RequestError(HTTPStatus.BAD_REQUEST, "this is not JSON") from None
        if not isinstance(said, dict):
            raise RequestError(HTTPStatus.BAD_REQUEST, "send a JSON object")
        return said

    def _query(self, name: str) -> str | None:
        return parse_qs(self.path.partition("?")[2]).get(name, [None])[0]

    def _rater(self, name: object) -> str:
        try:
            known = rater_named(name if isinstance(name, str) else "")
        except UsageError as error:
            raise RequestError(HTTPStatus.BAD_REQUEST, str(error)) from error
        if self.server.rater not in (None, known):
            raise RequestError(HTTPStatus.FORBIDDEN, f"this page is for the rater {self.server.rater}")
        return known

    def _number(self, number: object) -> int:
        text = str(number)
        if isinstance(number, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
            raise RequestError(HTTPStatus.BAD_REQUEST, "number must be a whole number from 0")
        if int(text) >= len(self.server.pictures):
            raise RequestError(HTTPStatus.NOT_FOUND, "there is no such pair")
        return int(text)


@lru_cache
def _file(name: str) -> bytes:
    return resources.files("pipelines.review").joinpath("page", name).read_bytes()


def _json(content: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(content).encode()
