"""Answers that everybody shares: however many ask, each is made once and kept for a moment."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from node.clock import Clock
from node.logs import get_logger
from protocol.errors import QuasarError

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Kept(Generic[V]):
    value: V
    at_s: float


class SharedAnswers(Generic[K, V]):
    """Keeps the latest answers to `make`, at most `size` of them.

    Up to `fresh_s` an answer is given as it is; up to `stale_s` it is given while a new one is made; beyond
    that callers wait for the new one.
    """

    def __init__(
        self,
        make: Callable[[K], Awaitable[V]],
        clock: Clock,
        *,
        fresh_s: float,
        stale_s: float,
        size: int,
    ) -> None:
        self._make = make
        self._clock = clock
        self._fresh_s = fresh_s
        self._stale_s = stale_s
        self._size = size
        self._kept: OrderedDict[K, _Kept[V]] = OrderedDict()
        self._making: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """The answer for a key; raises what `make` raises."""
        if self._age_s(key) > self._stale_s:
            # A shield: one reader who leaves must not take the answer from the others.
            return await asyncio.shield(self._start(key))
        self.refresh(key)
        self._kept.move_to_end(key)
        return self._kept[key].value

    def refresh(self, key: K) -> None:
        """Begin to make a new answer unless the one that is kept is fresh; what fails is logged."""
        if self._age_s(key) > self._fresh_s:
            self._start(key)

    async def close(self) -> None:
        """Stop what is being made."""
        tasks = list(self._making.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _age_s(self, key: K) -> float:
        kept = self._kept.get(key)
        return float("inf") if kept is None else self._clock.monotonic() - kept.at_s

    def _start(self, key: K) -> asyncio.Task[V]:
        task = self._making.get(key)
        if task is None:
            task = asyncio.create_task(self._make_and_keep(key), name=f"page {key}")
            self._making[key] = task
            task.add_done_callback(lambda done: self._end(key, done))
        return task

    async def _make_and_keep(self, key: K) -> V:
        started_s = self._clock.monotonic()
        value = await self._make(key)
        self._kept[key] = _Kept(value, started_s)
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)
        return value

    def _end(self, key: K, task: asyncio.Task[V]) -> None:
        del self._making[key]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Whoever waits gets the error as well; with a stale answer given, this is all that tells of it.
            bug = None if isinstance(error, QuasarError) else error
            _log.warning("page not made", key=str(key), error=str(error), exc_info=bug)
