"""What many ask for, done in groups: whoever asks while one group is under way is in the next."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one of a group gets: a value, or an error."""

    value: Any = None
    error: BaseException | None = None


class Batches(Generic[A]):
    """Hands what is asked for to `handle`, in the order in which it came, at most `most` at once.

    `handle` gives an outcome for each; what it raises is everybody's error. A caller that is cancelled
    leaves; what it asked for is done all the same.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[A]], Awaitable[Sequence[Outcome]]],
        *,
        name: str,
        most: int | None = None,
    ) -> None:
        self._handle = handle
        self._name = name
        self._most = most
        self._waiting: list[tuple[A, asyncio.Future[Any]]] = []
        self._pump: asyncio.Task[None] | None = None

    async def ask(self, item: A) -> Any:
        """The value of this one; raises its error."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, answer))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._work_off(), name=self._name)
        return await answer

    async def close(self) -> None:
        """Wait until everything that was asked for is done."""
        if self._pump is not None:
            await asyncio.wait({self._pump})

    async def _work_off(self) -> None:
        while self._waiting:
            most = len(self._waiting) if self._most is None else self._most
            group, self._waiting = self._waiting[:most], self._waiting[most:]
            try:
                outcomes = await self._handle([item for item, _ in group])
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - handed to every caller
                outcomes = [Outcome(error=error)] * len(group)
            for (_, answer), outcome in zip(group, outcomes, strict=True):
                if answer.done():
                    continue
                if outcome.error is None:
                    answer.set_result(outcome.value)
                else:
                    answer.set_exception(outcome.error)
