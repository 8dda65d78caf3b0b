"""Serve pages on 127.0.0.1, behind a token in the address.

Other users of the machine cannot guess the address, and pages of other sites cannot reach it: requests with another
Host or Origin are refused (DNS rebinding), and the answers to all requests forbid what the pages do not need.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

from aiohttp import web

from audit.errors import AuditError, UsageError, first_line

LOOPBACK = "127.0.0.1"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with `no-referrer`, browsers send the Origin `null` with forms
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MOST_ADDRESS = 1 << 15  # bytes of an address, which may hold a query in SQL
# When the command is interrupted, requests that are still being answered get so many seconds.
GRACE = 1.0


class LocalServer:
    """A server for browsers of this machine. `address` is what the user opens; it holds the token.

    Args:
        routes: The routes of the pages, with paths relative to the address, such as `""` or `page.css`.
        port: The port; 0 for any free one.
        most_bytes: The largest body of a request.
        explain: Turns the message of an error into a page; None answers with the message as text.

    Raises:
        UsageError: The port is taken or not allowed.
    """

    def __init__(
        self,
        routes: Iterable[web.RouteDef],
        port: int = 0,
        most_bytes: int = 4096,
        explain: Callable[[str], str] | None = None,
    ) -> None:
        self.token, self._explain = secrets.token_urlsafe(24), explain
        self._app = web.Application(middlewares=[self._guarded, self._explained], client_max_size=most_bytes)
        for route in routes:
            self._app.router.add_route(route.method, f"/{{token}}/{route.path}", route.handler)
        self._app.on_response_prepare.append(_forbid)
        try:
            self._socket = socket.create_server((LOOPBACK, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"port {port}: {error}", hint="Choose another --port, or leave it out.") from error
        self.port: int = self._socket.getsockname()[1]

    @property
    def address(self) -> str:
        """The address of the first page, with its token."""
        return f"http://{LOOPBACK}:{self.port}/{self.token}/"

    def serve(self) -> None:
        """Answer requests until the user presses Ctrl-C."""
        with suppress(KeyboardInterrupt):
            asyncio.run(self.run())

    async def run(self) -> None:
        """Answer requests until the task is cancelled."""
        runner = web.AppRunner(self._app, access_log=None, shutdown_timeout=GRACE, max_line_size=MOST_ADDRESS)
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        """Refuse requests that do not come from the pages."""
        hosts = [f"{name}:{self.port}" for name in (LOOPBACK, "localhost")]
        if request.headers.get("Host") not in hosts:
            raise web.HTTPForbidden(text="unknown host: open the address that crossaudit printed")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in [f"http://{host}" for host in hosts]:
            raise web.HTTPForbidden(text="this request comes from another site")
        _, _, rest = request.path.partition("/")
        token, slash, _ = rest.partition("/")
        if not hmac.compare_digest(token.encode(), self.token.encode()) or not slash:
            raise web.HTTPForbidden(text="wrong address: open the one that crossaudit printed")
        return await handler(request)

    @web.middleware
    async def _explained(self, request: web.Request, handler: Callable) -> web.StreamResponse:
        """Answer errors of the run with their message. Errors of the program itself get a traceback on the terminal."""
        try:
            return await handler(request)
        except web.HTTPException as error:
            status, message = error.status, error.text or error.reason
            if status < 400 or self._explain is None:
                raise
        except (AuditError, OSError) as error:
            status = 400 if isinstance(error, UsageError) else 500
            message = str(error) if self._explain else first_line(error)
        if self._explain is None:
            return web.Response(text=message, status=status)
        return web.Response(text=self._explain(message), content_type="text/html", status=status)


async def _forbid(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
