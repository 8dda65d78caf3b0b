"""Serve the pages of a run."""

from __future__ import annotations

from asyncio import to_thread
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

import duckdb
import pyarrow as pa
from aiohttp import web

from audit.errors import AuditError, UsageError
from audit.images.decoding import FORMATS
from audit.record.ledger import Ledger
from audit.schema import VERDICT_WORDS
from pipelines.configuration.settings import absolute
from pipelines.engine.manifest import read
from pipelines.runs.lookup import Answer, look_up
from pipelines.ui import captions, pages, sql
from pipelines.ui.progress import progress
from pipelines.web.local_server import LocalServer
from reports.inline_svg import Strip
from reports.record.histograms import histograms
from reports.record.source import Source
from reports.shown_caption import MOST, read_caption
from reports.spreadsheet import neutralised, to_csv
from reports.views import connect

MOST_UPLOAD = 32 << 20  # bytes of an image
MOST_SHOWN, MOST_CSV = 200, 100_000  # rows of a table on a page, and of a result as CSV
EXAMPLE = "select verdict, count(*) as captions, sum(row_count) as rows from verdicts group by all order by captions"
# The report has a script of its own. It runs in an origin of its own, and cannot reach these pages.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class UiServer(LocalServer):
    """The server of one run, which is only read.

    Args:
        run: The path or URI of the run. It may still be working.
        port: The port; 0 for any free one.

    Raises:
        AuditError: There is no run, or its manifest is damaged.
        UsageError: The port is taken or not allowed.
    """

    def __init__(self, run: str, port: int = 0) -> None:
        self._ledger, self._searching = Ledger(absolute(run, Path.cwd())), Lock()
        self._scores: Strip | None = None
        read(self._ledger.uri)
        routes = [
            _get("", self._first),
            _get("progress", self._progress),
            _get("captions", self._captions),
            _get("caption", self._caption),
            _get("image", self._image),
            web.post("image", self._post_image),
            _get("sql", self._sql),
            _get("result.csv", self._csv),
            _get("report.html", self._report),
            _get("style.css", lambda query: _text(pages.style(), "text/css")),
            _get("live.js", lambda query: _text(pages.script(), "text/javascript")),
        ]
        super().__init__(routes, port, MOST_UPLOAD, lambda message: self._page("error", "", message=message))

    def _page(self, name: str, here: str, **content: object) -> str:
        """Render a page. `here` is its entry in the navigation."""
        return pages.page(name, run=self._ledger.uri, here=here, **content)

    @contextmanager
    def _opened(self) -> Iterator[Source]:
        """Open the run as it is now."""
        manifest = read(self._ledger.uri)
        with connect(self._ledger.uri) as connection:
            try:
                yield Source(connection, manifest, self._ledger.uri)
            except (duckdb.Error, pa.ArrowException) as error:
                raise AuditError(f"a table cannot be read: {str(error).strip()}", where=self._ledger.uri) from error

    def _first(self, query: Mapping[str, str]) -> web.Response:
        with self._opened() as source:
            found = progress(source, self._ledger)
        title = (source.settings.get("report") or {}).get("title") or "Audit"
        return _html(self._page("first", "", progress=found, title=title))

    def _progress(self, query: Mapping[str, str]) -> web.Response:
        """Answer the part of the first page that changes."""
        with self._opened() as source:
            found = progress(source, self._ledger)
        return web.json_response({"works": found.works, "html": pages.page("progress", progress=found)})

    def _captions(self, query: Mapping[str, str]) -> web.Response:
        text, verdict, number = query.get("text", ""), query.get("verdict", ""), query.get("page", "1")
        if verdict not in ("", *VERDICT_WORDS) or not (number.isascii() and number.isdigit() and len(number) < 10):
            raise UsageError("no such page of captions", hint="Search again.")
        with self._opened() as source:
            found = captions.search(source, text, verdict, int(number))
        words = {"words": VERDICT_WORDS, "text": text, "verdict": verdict}
        return _html(self._page("captions", "captions", found=found, **words))

    def _caption(self, query: Mapping[str, str]) -> web.Response:
        with self._opened() as source:
            found = read_caption(source, query.get("id", ""))
            if found is None:
                raise web.HTTPNotFound(text="the run has no such caption")
            strip = self._strip(source) if found.verdict["score"] is not None else None
            thresholds = {kind: source.threshold(kind) for kind in ("verbatim", "region")}
        limits = {"thresholds": thresholds, "embedder": source.embedder, "most": MOST}
        content = {"shown": found, "caption": found.verdict, "strip": strip, **found.pictured(), **limits}
        return _html(self._page("caption", "captions", **content))

    def _strip(self, source: Source) -> Strip | None:
        """Return the scores of control captions as a small figure. It is drawn once, because it does not change."""
        if self._scores is None and "scores" in (found := histograms(source)):
            self._scores = Strip("scores", found["scores"])
        return self._scores

    def _image(self, query: Mapping[str, str], answer: Answer | None = None, name: str = "") -> web.Response:
        found = None
        if answer is not None:
            nearest = answer.nearest.to_pylist()
            related = answer.captions.to_pylist() if answer.captions is not None else []
            found = {
                "name": name,
                "note": answer.note,
                "nearest": nearest,
                "number_of": {row["image_id"]: number for number, row in enumerate(nearest, 1)},
                "captions": related[:MOST_SHOWN],
                "more": len(related) > MOST_SHOWN,
            }
        formats = ",".join(f"image/{name.lower()}" for name in FORMATS)
        return _html(self._page("lookup", "image", found=found, formats=formats, most=MOST_UPLOAD >> 20))

    async def _post_image(self, request: web.Request) -> web.Response:
        upload = (await request.post()).get("image")
        if not isinstance(upload, web.FileField) or not upload.filename:
            raise web.HTTPBadRequest(text="choose an image file")
        name, content = upload.filename, await to_thread(upload.file.read)

        def looked_up() -> web.Response:
            with self._searching:  # each search loads the network that compares images
                return self._image({}, look_up(self._ledger.uri, content, name), name)

        return await to_thread(looked_up)

    def _sql(self, query: Mapping[str, str]) -> web.Response:
        statement, result, message = query.get("sql", ""), None, ""
        if statement.strip():
            try:
                result = sql.select(self._ledger.uri, statement, MOST_SHOWN)
            except UsageError as error:
                message = str(error)
        limits = {"most_csv": MOST_CSV, "seconds": round(sql.SECONDS)}
        shown = {"names": result.table.column_names, "rows": pages.cells(result.table)} if result else {}
        content = {"sql": statement or EXAMPLE, "result": result, "message": message, **shown, **limits}
        return _html(self._page("sql", "sql", **content))

    def _csv(self, query: Mapping[str, str]) -> web.Response:
        table, _ = neutralised(sql.select(self._ledger.uri, query.get("sql", ""), MOST_CSV).table)
        answer = web.Response(body=to_csv(table), content_type="text/csv", charset="utf-8")
        answer.headers["Content-Disposition"] = 'attachment; filename="result.csv"'
        return answer

    def _report(self, query: Mapping[str, str]) -> web.Response:
        content = self._ledger.read_bytes("report.html")
        if content is None:
            raise AuditError("the run has no report yet", where=self._ledger.uri, hint="A run writes it when it ends.")
        answer = _html(content.decode("utf-8", "replace"))
        answer.headers["Content-Security-Policy"] = REPORT_POLICY
        return answer


def _get(path: str, answer: Callable[[Mapping[str, str]], web.Response]) -> web.RouteDef:
    """Return a route whose answer is computed in a thread, from the query of the address."""

    async def handler(request: web.Request) -> web.Response:
        return await to_thread(answer, request.query)

    return web.get(path, handler)


def _html(content: str) -> web.Response:
    return _text(content, "text/html")


def _text(content: str, kind: str) -> web.Response:
    return web.Response(text=content, content_type=kind)
