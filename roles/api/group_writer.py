"""Group commit for SQLite: many callers' writes share one transaction, and one wait for the disk.

Each write runs inside a savepoint, one after the other, so that one which fails leaves nothing and spoils
nothing; nobody is told of success before the whole has reached the disk.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

T = TypeVar("T")

MAX_GROUP: Final = 64

Work = Callable[[Connection], Any]


@dataclass(frozen=True, slots=True)
class _Outcome:
    value: Any = None
    error: BaseException | None = None


class TransactionLost(Exception):
    """The database gave up the transaction that others' writes were part of; its cause says why."""


class GroupWriter:
    """Runs writes on one connection in one thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="api-writer")
        self._waiting: list[tuple[Work, asyncio.Future[Any]]] = []
        self._pump: asyncio.Task[None] | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        """The result of `work` once it is on disk; raises what `work` or the database raised."""
        result: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, result))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._write_all(), name="api-writer")
        return await result

    async def close(self) -> None:
        """Finish what is being written and close the connection."""
        if self._pump is not None:
            await asyncio.wait({self._pump})
        self._thread.shutdown()
        self._engine.dispose()

    async def _write_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            works = [work for work, _ in group]
            outcomes = await loop.run_in_executor(self._thread, self._commit, works)
            for (_, result), outcome in zip(group, outcomes, strict=True):
                # A caller that went away has its write all the same.
                if result.done():
                    continue
                if outcome.error is None:
                    result.set_result(outcome.value)
                else:
                    result.set_exception(outcome.error)

    def _commit(self, works: Sequence[Work]) -> list[_Outcome]:
        try:
            with self._engine.begin() as connection:
                return [_run_one(connection, work) for work in works]
        except Exception as error:  # noqa: BLE001 - handed to every caller, none of whom has written anything
            cause = error.__cause__ if isinstance(error, TransactionLost) else error
            return [_Outcome(error=cause)] * len(works)


def _run_one(connection: Connection, work: Work) -> _Outcome:
    raw: Any = connection.connection.dbapi_connection
    raw.execute("SAVEPOINT one")
    try:
        value = work(connection)
    except Exception as error:
        if not raw.in_transaction:
            # A full disk or an I/O error takes back the transaction as a whole, savepoints included.
            raise TransactionLost from error
        raw.execute("ROLLBACK TO one")
        raw.execute("RELEASE one")
        return _Outcome(error=error)
    raw.execute("RELEASE one")
    return _Outcome(value=value)
