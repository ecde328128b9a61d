"""The front page as it is now: rendered once for all readers, and which of its parts are news to whom."""

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from node.clock import Clock
from node.http_server import ApiProblem
from node.metrics import Metrics
from roles.api.page.reader import PageReader
from roles.api.page.rendering import SECTIONS, Pages
from roles.api.page.shared import SharedAnswers
from roles.api.page.snapshot import Front

FRESH_S: Final = 1.0
STALE_S: Final = 10.0
LOOK_S: Final = 0.5
"""While somebody listens, how often it is asked whether the parts are still fresh."""
MAX_LISTENERS: Final = 512
MAX_LISTENERS_PER_ADDRESS: Final = 16
RETRY_AFTER_S: Final = 30
KEPT_MESSAGES: Final = 8
FRONT: Final = "front"


@dataclass(frozen=True, slots=True)
class Board:
    """One version of the front page; `changed_in` tells in which version each part last changed."""

    version: int = 0
    parts: Mapping[str, str] = field(default_factory=dict)
    changed_in: Mapping[str, int] = field(default_factory=dict)
    body: bytes = b""
    messages: dict[int | None, bytes] = field(default_factory=dict)
    """Made messages by the version that their readers have: everybody who follows gets the same bytes."""

    def advanced(self, parts: Mapping[str, str]) -> "Board":
        """The version after this one, without a body."""
        version = self.version + 1
        changed = {
            name: version if text != self.parts.get(name) else self.changed_in[name]
            for name, text in parts.items()
        }
        return Board(version, parts, changed)


class LivePage:
    """Component that keeps the front page up to date while somebody listens to it."""

    name = "page"

    def __init__(self, reader: PageReader, pages: Pages, clock: Clock, metrics: Metrics) -> None:
        self._reader = reader
        self._pages = pages
        self._clock = clock
        self._metrics = metrics
        # Versions of another process, or of this one before a restart, mean nothing here.
        self._epoch = secrets.token_hex(4)
        self._board = Board()
        self._answers: SharedAnswers[str, Board] = SharedAnswers(
            self._make, clock, fresh_s=FRESH_S, stale_s=STALE_S, size=1
        )
        self._news = asyncio.Event()
        self._listeners: Counter[str] = Counter()

    async def run(self) -> None:
        """Look for news while anybody listens, for ever."""
        try:
            while True:
                if self._listeners:
                    # Not waited for: a page that cannot be made, for whatever reason, must not end the API.
                    self._answers.refresh(FRONT)
                await self._clock.sleep(LOOK_S)
        finally:
            await self._answers.close()

    async def board(self) -> Board:
        """The page, at most some seconds old. Raises DatabaseUnavailable."""
        return await self._answers.get(FRONT)

    @property
    def news(self) -> asyncio.Event:
        """Is set when the version that is current now has been followed by another."""
        return self._news

    def message(self, known: int | None) -> tuple[bytes | None, int]:
        """The event that brings a reader of version `known` (None: of nothing) up to date, and the version.

        None when that reader has everything.
        """
        board = self._board
        if known == board.version:
            return None, board.version
        made = board.messages.get(known)
        if made is None:
            parts = {
                name: text
                for name, text in board.parts.items()
                if known is None or board.changed_in[name] > known
            }
            data = json.dumps(parts, separators=(",", ":"))
            made = f"id: {self._epoch}-{board.version}\nevent: parts\ndata: {data}\n\n".encode()
            # Versions are what readers say they have: a few are common, thousands would be somebody's game.
            if len(board.messages) < KEPT_MESSAGES:
                board.messages[known] = made
        return made, board.version

    def known_version(self, event_id: str) -> int | None:
        """The version behind an event's id; None for one that this process did not give."""
        epoch, _, number = event_id.partition("-")
        if epoch != self._epoch or not (number.isascii() and number.isdecimal() and len(number) < 19):
            return None
        return int(number) if int(number) <= self._board.version else None

    @contextmanager
    def seat(self, address: str) -> Iterator[None]:
        """Count a listener. Raises ApiProblem 503 with no seat left, 429 when this address has many."""
        retry = {"Retry-After": str(RETRY_AFTER_S)}
        if self._listeners.total() >= MAX_LISTENERS:
            raise ApiProblem(503, f"{MAX_LISTENERS} readers listen already: reload the page instead", retry)
        if self._listeners[address] >= MAX_LISTENERS_PER_ADDRESS:
            raise ApiProblem(
                429, f"address {address} listens {MAX_LISTENERS_PER_ADDRESS} times already: close some", retry
            )
        self._listeners[address] += 1
        self._metrics.page_listeners.set(self._listeners.total())
        try:
            yield
        finally:
            self._listeners[address] -= 1
            if not self._listeners[address]:
                del self._listeners[address]
            self._metrics.page_listeners.set(self._listeners.total())

    async def _make(self, _key: str) -> Board:
        front = await self._reader.front()
        # In another thread: hundreds of places take long to write down, and others are answered meanwhile.
        board = await asyncio.to_thread(self._write, front)
        if board is not self._board:
            self._board = board
            news, self._news = self._news, asyncio.Event()
            news.set()
        return board

    def _write(self, front: Front) -> Board:
        """The version of the page that shows `front`: the one before when nothing has changed."""
        parts = {name: self._pages.render(f"_{name}.html", front=front) for name in SECTIONS}
        if parts == self._board.parts:
            return self._board
        board = self._board.advanced(parts)
        body = self._pages.render(
            "front.html",
            subnet=front.subnet,
            wait_blocks=front.wait_blocks,
            parts=parts,
            event_id=f"{self._epoch}-{board.version}",
        )
        return Board(board.version, board.parts, board.changed_in, body.encode())
