"""One answer for everybody who asks, until something that it shows has changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar, cast

from node.clock import Clock

T = TypeVar("T")

MAX_AGE_S: Final = 1.0
"""Other replicas write too, and time passes."""
REST: Final = 2.0
"""After computing for a while, rest so many times as long: writers must not keep readers computing."""
MAX_REST_S: Final = 0.02


class Remembered(Generic[T]):
    """The latest answer of `compute`; whoever asks sees every write of this process made before.

    `revision`: a number that every write raises which `compute` would show.
    Those who wait share one computation, and nobody waits for more than the one under way and the next: a
    write that comes after a question need not be in its answer.
    """

    def __init__(
        self, compute: Callable[[], Awaitable[T]], revision: Callable[[], int], clock: Clock
    ) -> None:
        self._compute = compute
        self._newest_revision = revision
        self._clock = clock
        self._value: T | None = None
        self._revision = -1
        self._at_s = float("-inf")
        self._number = 0
        """Of the computation that made the value."""
        self._begun = 0
        self._computing: asyncio.Task[None] | None = None
        self._rests_until_s = float("-inf")

    @property
    def value(self) -> T | None:
        """The latest answer, however old; None before the first."""
        return self._value

    def is_fresh(self) -> bool:
        """True while `get` need not compute."""
        return self._is_as_of(self._newest_revision(), self._clock.monotonic())

    async def get(self) -> T:
        """An answer that is not older than the last write of this process. Raises what `compute` raises."""
        revision, asked_s = self._newest_revision(), self._clock.monotonic()
        while not self._is_as_of(revision, asked_s):
            await self._next()
        return cast(T, self._value)

    async def renew(self) -> T:
        """An answer that begins to be computed after this call. Raises what `compute` raises."""
        begun = self._begun
        while self._number <= begun:
            await self._next()
        return cast(T, self._value)

    def _is_as_of(self, revision: int, moment_s: float) -> bool:
        return self._revision >= revision and moment_s - self._at_s <= MAX_AGE_S

    async def _next(self) -> None:
        if self._computing is None or self._computing.done():
            self._computing = asyncio.create_task(self._refresh(), name="remembered")
            # With everybody gone who waited, an error is nobody's.
            self._computing.add_done_callback(lambda task: task.cancelled() or task.exception())
        # A shield: one caller who leaves must not take the answer from the others.
        await asyncio.shield(self._computing)

    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        if (rest_s := self._rests_until_s - loop.time()) > 0:
            await asyncio.sleep(rest_s)
        self._begun += 1
        revision, at_s, started_s = self._newest_revision(), self._clock.monotonic(), loop.time()
        self._value = await self._compute()
        self._revision, self._at_s, self._number = revision, at_s, self._begun
        took_s = loop.time() - started_s
        self._rests_until_s = loop.time() + min(REST * took_s, MAX_REST_S)
