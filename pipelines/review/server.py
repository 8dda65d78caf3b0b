"""Serve the page on which raters judge pairs."""

from __future__ import annotations

from asyncio import to_thread
from functools import partial
from importlib import resources
from typing import Any

from aiohttp import web

from audit.errors import UsageError
from audit.schema import ANSWER_WORDS
from pipelines.review.answers import Answers, rater_named
from pipelines.review.pairs import shuffled
from pipelines.review.pictures import Pictures
from pipelines.web.local_server import LocalServer

FILES = {"": "page.html", "page.css": "page.css", "page.js": "page.js"}
KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
SIDES = ("left", "right")


class ReviewServer(LocalServer):
    """The server of one review.

    Args:
        answers: Where answers go.
        pictures: The pictures of each pair: the generation, then the training image.
        rater: The only rater who may answer; None asks on the page.
        port: The port; 0 for any free one.

    Raises:
        UsageError: The port is taken or not allowed.
    """

    def __init__(self, answers: Answers, pictures: dict[str, Pictures], rater: str | None = None, port: int = 0):
        self.answers, self.pictures, self.rater = answers, pictures, rater
        routes = [web.get(path, partial(_file, name)) for path, name in FILES.items()]
        routes += [
            web.get("rater", self._get_rater),
            web.get("state", self._get_state),
            web.get("picture/{number}/{side:left|right}", self._get_picture),
            web.post("answer", self._post_answer),
        ]
        super().__init__(routes, port)

    def picture(self, rater: str, number: int, side: str) -> bytes:
        """Return the left or the right picture of a pair. Which of them was generated differs by pair and rater."""
        pair = self.answers.order(rater)[number]
        swapped = int(shuffled("side", rater, pair), 16) % 2
        return self.pictures[pair][SIDES.index(side) ^ swapped]

    async def _get_rater(self, request: web.Request) -> web.Response:
        return web.json_response({"rater": self.rater})

    async def _get_state(self, request: web.Request) -> web.Response:
        """Answer what the page needs to know: the rater and their answers, in order."""
        rater = self._rater(request.query.get("rater"))
        return web.json_response({"rater": rater, "answers": await to_thread(self.answers.of, rater)})

    async def _get_picture(self, request: web.Request) -> web.Response:
        rater, number = self._rater(request.query.get("rater")), self._number(request.match_info["number"])
        content = self.picture(rater, number, request.match_info["side"])
        kind = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
        return web.Response(body=content, content_type=kind)

    async def _post_answer(self, request: web.Request) -> web.Response:
        said = await _json_object(request)
        rater, number = self._rater(said.get("rater")), self._number(said.get("number"))
        seconds: Any = said.get("seconds")
        if said.get("answer") not in ANSWER_WORDS:
            raise web.HTTPBadRequest(text=f"the answer must be one of {', '.join(ANSWER_WORDS)}")
        if type(seconds) not in (int, float) or not 0 <= seconds < 1e9:
            raise web.HTTPBadRequest(text="seconds must be a number from 0")
        await to_thread(self.answers.give, rater, number, said["answer"], float(seconds))
        return web.json_response({"number": number, "answer": said["answer"]})

    def _rater(self, name: object) -> str:
        try:
            known = rater_named(name if isinstance(name, str) else "")
        except UsageError as error:
            raise web.HTTPBadRequest(text=str(error)) from error
        if self.rater not in (None, known):
            raise web.HTTPForbidden(text=f"this page is for the rater {self.rater}")
        return known

    def _number(self, number: object) -> int:
        text = str(number)
        if isinstance(number, bool) or not (text.isascii() and text.isdigit() and len(text) < 10):
            raise web.HTTPBadRequest(text="number must be a whole number from 0")
        if int(text) >= len(self.pictures):
            raise web.HTTPNotFound(text="there is no such pair")
        return int(text)


async def _json_object(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(text="send JSON")
    try:
        said = await request.json()
    except (ValueError, RecursionError):
        raise web.HTTPBadRequest(text="this is not JSON") from None
    if not isinstance(said, dict):
        raise web.HTTPBadRequest(text="send a JSON object")
    return said


async def _file(name: str, request: web.Request) -> web.Response:
    content = resources.files("pipelines.review").joinpath("page", name).read_text("utf-8")
    return web.Response(text=content, content_type=KINDS[name.rpartition(".")[2]])
