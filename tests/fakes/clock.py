"""A clock that stands still until a test turns it."""

import asyncio
import heapq
from datetime import UTC, datetime, timedelta
from itertools import count

START = datetime(2026, 1, 1, tzinfo=UTC)


class FakeClock:
    """Implements `node.clock.Clock`; sleepers wake, in the order of their times, only through `advance`."""

    def __init__(self, start: datetime = START) -> None:
        self._start = start
        self._elapsed_s = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def now(self) -> datetime:
        """Start time plus all that was advanced."""
        return self._start + timedelta(seconds=self._elapsed_s)

    def monotonic(self) -> float:
        """Seconds advanced so far."""
        return self._elapsed_s

    @property
    def sleepers(self) -> int:
        """How many calls of `sleep` wait at this moment."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has passed `seconds`; zero and below only yield."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed_s + seconds, next(self._order), future))
        await future

    async def advance(self, seconds: float) -> None:
        """Move time forward, waking each sleeper at its own moment and letting it run before the next."""
        end = self._elapsed_s + seconds
        await self._settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, future = heapq.heappop(self._sleepers)
            self._elapsed_s = max(self._elapsed_s, due)
            if not future.done():
                future.set_result(None)
                await self._settle()
        self._elapsed_s = end
        await self._settle()

    @staticmethod
    async def _settle() -> None:
        """Let every task that can run reach its next wait (a few rounds: wake-ups pass through futures)."""
        for _ in range(10):
            await asyncio.sleep(0)
