"""Group commit for SQLite: many callers' writes share one transaction, and one wait for the disk.

Each write runs inside a savepoint, one after the other, so that one which fails leaves nothing and spoils
nothing; nobody is told of success before the whole has reached the disk.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

from node.batches import Batches, Outcome
from node.group_commit import in_savepoint

T = TypeVar("T")

MAX_GROUP: Final = 64

Work = Callable[[Connection], Any]


class GroupWriter:
    """Runs writes on one connection in one thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="api-writer")
        self._batches = Batches(self._write, name="api-writer", most=MAX_GROUP)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """The result of `work` once it is on disk; raises what `work` or the database raised."""
        result: T = await self._batches.ask(work)
        return result

    async def close(self) -> None:
        """Finish what is being written and close the connection."""
        await self._batches.close()
        self._thread.shutdown()
        self._engine.dispose()

    async def _write(self, works: Sequence[Work]) -> list[Outcome]:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, works)

    def _commit(self, works: Sequence[Work]) -> list[Outcome]:
        with self._engine.begin() as connection:
            raw: Any = connection.connection.dbapi_connection
            return [in_savepoint(raw, partial(work, connection)) for work in works]
