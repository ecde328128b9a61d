"""Many callers' work on one SQLite connection: what waits while the disk is busy shares the next commit."""

import sqlite3
from asyncio import get_running_loop
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from node.batches import Batches, Outcome
from node.logs import get_logger

T = TypeVar("T")

CHECKPOINT_COMMITS: Final = 100
"""After so many the write-ahead log is worked into the file."""
CHECKPOINT_ATTEMPTS: Final = 3
"""What was written during the first is little, and soon done."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Work:
    act: Callable[[], Any]
    is_write: bool


class GroupCommit:
    """Runs work in one thread, in the order in which it came, and answers when the whole group is on disk.

    The connection to the file `path` must be in autocommit mode, with a write-ahead log. Each piece of work
    runs inside a savepoint, so that one which fails leaves nothing and spoils nothing. The log is worked into
    the file beside the work: SQLite would have one of the callers wait for that.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, *, thread_name: str) -> None:
        self._connection = connection
        self._path = path
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        self._commits = 0
        self._checkpoints = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{thread_name}-checkpoint")
        # What a process left that was killed, perhaps again and again.
        self._checkpoints.submit(self._checkpoint)
        # One thread for all: SQLite serialises writers anyway, and the event loop must not wait for the disk.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=thread_name)
        self._batches = Batches(self._work_off, name=thread_name)

    async def run(self, act: Callable[[], T], *, is_write: bool) -> T:
        """The result of `act` once its transaction is on disk; raises what `act` or SQLite raised."""
        result: T = await self._batches.ask(_Work(act, is_write))
        return result

    async def close(self) -> None:
        """Finish what was asked for and close the connection."""
        await self._batches.close()
        await get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        self._checkpoints.shutdown()
        self._connection.close()

    async def _work_off(self, group: Sequence[_Work]) -> list[Outcome]:
        try:
            return await get_running_loop().run_in_executor(self._thread, self._commit, group)
        finally:
            self._commits += 1
            if self._commits % CHECKPOINT_COMMITS == 0:
                self._checkpoints.submit(self._checkpoint)

    def _checkpoint(self) -> None:
        try:
            with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
                for _ in range(CHECKPOINT_ATTEMPTS):
                    checkpoint = connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                    _, logged, done = checkpoint.fetchone()
                    if logged == done:
                        break
        except sqlite3.Error as error:
            # Nothing is lost: it stays in the log, which grows until a later attempt.
            _log.warning("write-ahead log not worked in", file=str(self._path), error=str(error))

    def _commit(self, group: Sequence[_Work]) -> list[Outcome]:
        """What every piece of work gave or raised; raises what took the transaction as a whole."""
        is_write = any(work.is_write for work in group)
        self._connection.execute("BEGIN IMMEDIATE" if is_write else "BEGIN")
        try:
            outcomes = [in_savepoint(self._connection, work.act) for work in group]
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return outcomes


def in_savepoint(connection: sqlite3.Connection, act: Callable[[], Any]) -> Outcome:
    """What `act` gave or raised; when it raised, it has left nothing in the transaction that it is part of.

    Raises what took back the transaction as a whole, savepoints included: a full disk or an I/O error does.
    """
    connection.execute("SAVEPOINT one")
    try:
        outcome = Outcome(value=act())
    except Exception as error:
        if not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO one")
        outcome = Outcome(error=error)
    connection.execute("RELEASE one")
    return outcome
