"""One request at a time in the model, a bounded number waiting, in the order of their coming."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from node.clock import Clock
from node.http_server import ApiProblem
from node.metrics import Metrics

RETRY_AFTER_MAX_S: Final = 60
SMOOTHING: Final = 0.2


class Turns:
    """Hands out turns; `size` is how many requests may wait beside the one that runs."""

    def __init__(self, size: int, metrics: Metrics, clock: Clock) -> None:
        self._size = size
        self._metrics = metrics
        self._clock = clock
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._mean_s = 1.0

    @property
    def is_idle(self) -> bool:
        """True while nobody has the turn."""
        return not self._lock.locked()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return self._waiting

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for the turn and hold it; raises ApiProblem 429 at once when too many wait already."""
        if self._waiting >= self._size:
            retry_after_s = min(RETRY_AFTER_MAX_S, math.ceil(self._mean_s * (self._waiting + 1)))
            raise ApiProblem(
                429,
                f"{self._waiting} requests are waiting already: try again in {retry_after_s} s",
                {"Retry-After": str(retry_after_s)},
            )
        self._set_waiting(+1)
        try:
            await self._lock.acquire()
        finally:
            self._set_waiting(-1)
        self._metrics.inference_requests_running.set(1)
        started = self._clock.monotonic()
        try:
            yield
        finally:
            self._mean_s += SMOOTHING * (self._clock.monotonic() - started - self._mean_s)
            self._metrics.inference_requests_running.set(0)
            self._lock.release()

    def _set_waiting(self, change: int) -> None:
        self._waiting += change
        self._metrics.inference_requests_waiting.set(self._waiting)
