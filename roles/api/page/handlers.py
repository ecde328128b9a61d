"""The page's routes: HTML for people, one stream of events, and the static files."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from node.clock import Clock
from node.http_errors import problem_of
from node.http_server import STATE, ApiProblem
from node.logs import get_logger
from roles.api.limits import Limits
from roles.api.page.live import FRESH_S, LivePage
from roles.api.page.reader import PageReader
from roles.api.page.rendering import Pages
from roles.api.page.shared import SharedAnswers

HEARTBEAT_S: Final = 15.0
"""The time, sent this often, keeps proxies from closing a quiet stream, and shows who has left."""
WRITE_PATIENCE_S: Final = 30.0
"""A reader that takes nothing for this long is cut off."""
RETRY_MS: Final = 3000
KEPT_PAGES: Final = 256
FOREVER: Final = "public, max-age=31536000, immutable"
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
STREAM_HEADERS: Final = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    # nginx would otherwise collect the events until a buffer is full.
    "X-Accel-Buffering": "no",
}
_HOTKEY: Final = re.compile(r"[1-9A-HJ-NP-Za-km-z]{40,64}", re.ASCII)

_log = get_logger(__name__)

Show = Callable[[web.Request], Awaitable[web.StreamResponse]]


class PageHandlers:
    """Handlers of everything that a browser asks for."""

    def __init__(
        self, reader: PageReader, pages: Pages, live: LivePage, limits: Limits, clock: Clock
    ) -> None:
        self._reader = reader
        self._pages = pages
        self._live = live
        self._limits = limits
        self._clock = clock
        # Never older than a moment: a miner looks here right after its reveal.
        self._miners: SharedAnswers[str, str] = SharedAnswers(
            self._miner_page, clock, fresh_s=FRESH_S, stale_s=FRESH_S, size=KEPT_PAGES
        )
        self._submissions: SharedAnswers[int, str | None] = SharedAnswers(
            self._submission_page, clock, fresh_s=FRESH_S, stale_s=FRESH_S, size=KEPT_PAGES
        )

    def add_to(self, app: web.Application) -> None:
        """Add the page's routes to the application."""
        app.router.add_get("/", self._as_page(self._front))
        app.router.add_get("/miners", self._as_page(self._find_miner))
        app.router.add_get("/miners/{hotkey}", self._as_page(self._miner))
        app.router.add_get("/submissions/{submission_id:[0-9]+}/page", self._as_page(self._submission))
        app.router.add_get("/static/{name}", self._static)
        # No HEAD: it would take a seat for an answer that has no body.
        app.router.add_get("/events", self._events, allow_head=False)

    def _as_page(self, show: Show) -> Show:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                return await show(request)
            except web.HTTPException:
                raise
            except Exception as error:
                problem = problem_of(error)
                if problem is None:
                    raise
                text = self._pages.render(
                    "error.html", subnet=None, status=problem.status, detail=problem.detail
                )
                return _html(text, status=problem.status, headers=problem.headers)

        return answer

    async def _front(self, _request: web.Request) -> web.StreamResponse:
        return _html((await self._live.board()).body)

    async def _find_miner(self, request: web.Request) -> web.StreamResponse:
        hotkey = _hotkey(request.query.get("hotkey", "").strip())
        raise web.HTTPSeeOther(f"/miners/{hotkey}", headers=HEADERS)

    async def _miner(self, request: web.Request) -> web.StreamResponse:
        return _html(await self._miners.get(_hotkey(request.match_info["hotkey"])))

    async def _miner_page(self, hotkey: str) -> str:
        page = await self._reader.miner(hotkey)
        return self._pages.render("miner.html", page=page, subnet=page.subnet)

    async def _submission(self, request: web.Request) -> web.StreamResponse:
        digits = request.match_info["submission_id"]
        text = await self._submissions.get(int(digits)) if len(digits) < 19 else None
        if text is None:
            raise ApiProblem(404, f"there is no submission {digits[:19]}")
        return _html(text)

    async def _submission_page(self, submission_id: int) -> str | None:
        page = await self._reader.submission(submission_id)
        if page is None:
            return None
        return self._pages.render("submission.html", page=page, subnet=page.subnet)

    async def _static(self, request: web.Request) -> web.StreamResponse:
        file = self._pages.static.get(request.match_info["name"])
        if file is None:
            raise web.HTTPNotFound
        headers = {**HEADERS, "Content-Type": f"{file.content_type}; charset=utf-8"}
        if request.query.get("v") == file.version:
            headers["Cache-Control"] = FOREVER
        return web.Response(body=file.content, headers=headers)

    async def _events(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events: the time, what the reader does not have, then every change of the front page.

        Nothing is kept for a reader: one that is slow finds only the newest state when it comes back to it.
        """
        with self._live.seat(self._limits.address_of(request)):
            await self._live.board()
            response = web.StreamResponse(headers=STREAM_HEADERS)
            await response.prepare(request)
            last_id = request.headers.get("Last-Event-ID") or request.query.get("since", "")
            try:
                await self._send_events(request, response, self._live.known_version(last_id))
            except (ConnectionError, TimeoutError) as error:
                _log.debug("listener gone", error=str(error))
                if request.transport is not None:
                    request.transport.abort()
            return response

    async def _send_events(
        self, request: web.Request, response: web.StreamResponse, known: int | None
    ) -> None:
        draining = request.config_dict[STATE].draining
        await _write(response, f"retry: {RETRY_MS}\n\n".encode())
        while not draining.is_set():
            news = self._live.news
            message, known = self._live.message(known)
            await _write(response, f"event: time\ndata: {self._clock.now().isoformat()}\n\n".encode())
            if message is not None:
                await _write(response, message)
            await _first_of(news, draining, timeout_s=HEARTBEAT_S)


async def _write(response: web.StreamResponse, data: bytes) -> None:
    async with asyncio.timeout(WRITE_PATIENCE_S):
        await response.write(data)


async def _first_of(*events: asyncio.Event, timeout_s: float) -> None:
    waiting = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _hotkey(text: str) -> str:
    if not _HOTKEY.fullmatch(text):
        raise ApiProblem(404, f"{text[:80]!r} is no hotkey: an SS58 address has 40 to 64 letters and digits")
    return text


def _html(text: str | bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = text.encode() if isinstance(text, str) else text
    return web.Response(
        body=body,
        status=status,
        headers={**HEADERS, **(headers or {}), "Content-Type": "text/html; charset=utf-8"},
    )
