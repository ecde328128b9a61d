"""Many callers' work on one SQLite connection: what waits while the disk is busy shares the next commit."""

import sqlite3
from asyncio import get_running_loop, wrap_future
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Work:
    act: Callable[[], Any]
    is_write: bool
    result: Future[Any]


@dataclass(frozen=True, slots=True)
class _Outcome:
    value: Any = None
    error: BaseException | None = None


class GroupCommit:
    """Runs work in one thread, in the order in which it came, and answers when the whole group is on disk.

    The connection must be in autocommit mode. Each piece of work runs inside a savepoint, so that one which
    fails leaves nothing and spoils nothing.
    """

    def __init__(self, connection: sqlite3.Connection, *, thread_name: str) -> None:
        self._connection = connection
        self._waiting: deque[_Work] = deque()
        # One thread for all: SQLite serialises writers anyway, and the event loop must not wait for the disk.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=thread_name)

    async def run(self, act: Callable[[], T], *, is_write: bool) -> T:
        """The result of `act` once its transaction is on disk; raises what `act` or SQLite raised.

        A caller that is cancelled leaves; what it asked for is done all the same.
        """
        result: Future[T] = Future()
        # From now on it cannot be taken back.
        result.set_running_or_notify_cancel()
        self._waiting.append(_Work(act, is_write, result))
        self._thread.submit(self._work_off)
        return await wrap_future(result)

    async def close(self) -> None:
        """Finish what was asked for and close the connection."""
        await get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)

    def _work_off(self) -> None:
        group = [self._waiting.popleft() for _ in range(len(self._waiting))]
        if not group:
            return  # The group before has done it.
        try:
            outcomes = self._commit(group)
        except BaseException as error:  # noqa: BLE001 - handed to every caller, none of whom has written anything
            outcomes = [_Outcome(error=error)] * len(group)
        for work, outcome in zip(group, outcomes, strict=True):
            if outcome.error is None:
                work.result.set_result(outcome.value)
            else:
                work.result.set_exception(outcome.error)

    def _commit(self, group: Sequence[_Work]) -> list[_Outcome]:
        """What every piece of work gave or raised; raises what took the transaction as a whole."""
        is_write = any(work.is_write for work in group)
        self._connection.execute("BEGIN IMMEDIATE" if is_write else "BEGIN")
        try:
            outcomes = [self._run_one(work.act) for work in group]
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return outcomes

    def _run_one(self, act: Callable[[], Any]) -> _Outcome:
        self._connection.execute("SAVEPOINT one")
        try:
            outcome = _Outcome(value=act())
        except Exception as error:
            # A full disk or an I/O error takes back the transaction as a whole, savepoints included.
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO one")
            outcome = _Outcome(error=error)
        self._connection.execute("RELEASE one")
        return outcome
