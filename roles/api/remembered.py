"""One answer for everybody who asks, until something that it shows has changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from node.clock import Clock
from roles.api.database import Database

T = TypeVar("T")

MAX_AGE_S: Final = 1.0
"""Other replicas write too, and time passes."""
REST: Final = 2.0
"""After computing for a while, rest so many times as long: writers must not keep readers computing."""
MAX_REST_S: Final = 0.02


class Remembered(Generic[T]):
    """The latest answer of `compute`; whoever asks sees every write of this process made before."""

    def __init__(self, compute: Callable[[], Awaitable[T]], database: Database, clock: Clock) -> None:
        self._compute = compute
        self._database = database
        self._clock = clock
        self._lock = asyncio.Lock()
        self._value: T | None = None
        self._revision = -1
        self._at_s = float("-inf")
        self._rests_until_s = float("-inf")

    @property
    def value(self) -> T | None:
        """The latest answer, however old; None before the first."""
        return self._value

    def is_fresh(self) -> bool:
        """True while `get` need not compute."""
        return self._revision == self._database.revision and self._clock.monotonic() - self._at_s <= MAX_AGE_S

    async def get(self) -> T:
        """An answer that is not older than the last write of this process. Raises what `compute` raises."""
        if self._value is not None and self.is_fresh():
            return self._value
        async with self._lock:
            if self._value is None or not self.is_fresh():
                await self._refresh()
            assert self._value is not None
            return self._value

    async def renew(self) -> T:
        """An answer computed now or, by others, while waiting for one's turn."""
        before = self._value
        async with self._lock:
            if self._value is before:
                await self._refresh()
            assert self._value is not None
            return self._value

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        if (rest_s := self._rests_until_s - loop.time()) > 0:
            await asyncio.sleep(rest_s)
        revision, at_s, started_s = self._database.revision, self._clock.monotonic(), loop.time()
        self._value = await self._compute()
        self._revision, self._at_s = revision, at_s
        took_s = loop.time() - started_s
        self._rests_until_s = loop.time() + min(REST * took_s, MAX_REST_S)
