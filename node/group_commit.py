"""Many callers' work on one SQLite connection: what waits while the disk is busy shares the next commit."""

import sqlite3
from asyncio import get_running_loop, wrap_future
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

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
    result: Future[Any]


@dataclass(frozen=True, slots=True)
class _Outcome:
    value: Any = None
    error: BaseException | None = None


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
        await get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        self._checkpoints.shutdown()
        self._connection.close()

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
