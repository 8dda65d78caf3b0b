"""Serve pages in this process, and ask for them."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import NamedTuple

from pipelines.web.local_server import LOOPBACK, LocalServer


class Answer(NamedTuple):
    """What a server answers."""

    status: int
    content: bytes
    headers: dict[str, str]

    @property
    def text(self) -> str:
        """The content as text."""
        return self.content.decode()


@contextmanager
def serving(server: LocalServer) -> Iterator[None]:
    """Answer requests in another thread, as long as the context lasts."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(server.run())

    def serve() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(serve)
        try:
            yield
        finally:
            loop.call_soon_threadsafe(task.cancel)
            done.result()


def ask(
    server: LocalServer,
    path: str,
    method: str = "GET",
    body: bytes | None = None,
    token: str | None = None,
    **headers: str,
) -> Answer:
    """Send a request to a page of a server. In the names of headers, `_` stands for `-`."""
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=60)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, f"/{server.token if token is None else token}/{path}", body, sent)
    response = connection.getresponse()
    found = Answer(response.status, response.read(), dict(response.getheaders()))
    connection.close()
    return found
