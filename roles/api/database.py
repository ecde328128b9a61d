"""The API's database: one transaction per state change, acknowledged when it is durable.

Work on the database is a plain function of a connection. SQLite has one writer, which takes everybody's
writes in turn; on PostgreSQL replicas write at the same time, READ COMMITTED, and writes that must not
overlap take the same turn (an advisory lock) or raise the standing's version (a row's lock).
"""

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, TypeVar

from sqlalchemy import URL, Connection, make_url, text, update
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from protocol.errors import ConfigError, InvalidMessage, Unavailable
from roles.api.engines import driver_errors, is_about_values, is_conflict, postgresql_engine, sqlite_engine
from roles.api.group_writer import GroupWriter
from roles.api.tables import standing_version

T = TypeVar("T")

CONFLICT_ATTEMPTS: Final = 3
READERS: Final = 4
WRITER_CACHE_KIB: Final = 4_000
READER_CACHE_KIB: Final = 2_000
"""Readers come back to the newest rows; what else they need the kernel has in memory."""
PATIENCE_S: Final = 20.0
"""A database that takes longer for one transaction counts as away."""
SQLITE_FILE: Final = "api.sqlite"


# In the order of the locks: two that want the same ones must not each hold what the other waits for.
TAKE_TURNS: Final = text(
    "SELECT pg_advisory_xact_lock(turn) FROM (SELECT DISTINCT hashtextextended(name, 0) AS turn "
    "FROM unnest(CAST(:turns AS text[])) AS name ORDER BY turn) AS ordered"
)


class DatabaseUnavailable(Unavailable):
    """The database did not take or give data: it is away, locked, or its disk is full."""


class Effect(IntEnum):
    """What a write changes for those who read."""

    HIDDEN = 0
    """Nothing that anybody is shown."""
    SHOWN = 1
    """Lists and counts."""
    RANKED = 2
    """Also the standing; such writes happen one after the other, on all replicas together."""


class _WriteConflict(Exception):
    """Another transaction wrote the same unique thing first."""


def database_url(text: str | None, data_dir: Path) -> URL:
    """The SQLAlchemy URL for a setting; without one, SQLite in the data directory.

    Whatever driver it names, the API's own is used. Raises ConfigError.
    """
    if text is None:
        return URL.create("sqlite", database=str(data_dir / SQLITE_FILE))
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        # Never the text itself: it may hold a password.
        raise ConfigError(
            "api.database_url is not a database URL: use sqlite:///PATH or postgresql://..."
        ) from error
    if backend == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise ConfigError("api.database_url names no file: an API that forgets is of no use")
        return url.set(drivername="sqlite")
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+asyncpg")
    raise ConfigError(f"api.database_url uses {backend}: only sqlite and postgresql are supported")


class Database:
    """Connections to one database; `write` and `read` are the only ways in."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._revisions = dict.fromkeys(Effect, 0)
        self._running: set[asyncio.Task[Any]] = set()
        self._driver_errors = driver_errors(url)
        if self.is_sqlite:
            self._group = GroupWriter(
                sqlite_engine(url, connections=1, begin="BEGIN IMMEDIATE", cache_kib=WRITER_CACHE_KIB)
            )
            self._files = sqlite_engine(url, connections=READERS, begin="BEGIN", cache_kib=READER_CACHE_KIB)
            self._readers = ThreadPoolExecutor(max_workers=READERS, thread_name_prefix="api-reader")
        else:
            self._writer = postgresql_engine(url, isolation_level="READ COMMITTED")
            # One snapshot for a whole read; nothing here can fail to serialise, because nothing is written.
            self._reader = postgresql_engine(url, isolation_level="REPEATABLE READ")

    async def write(
        self,
        work: Callable[[Connection], T],
        *,
        turns: Collection[str] = (),
        effect: Effect = Effect.HIDDEN,
        patience_s: float | None = PATIENCE_S,
    ) -> T:
        """Run `work` in one transaction and return its result once that is durable.

        Nothing is written when `work` raises. It reads before it inserts, so when another replica wrote the
        same unique thing first it is run again and finds it. Writes that share one of their `turns` never
        overlap, on any replica. `patience_s`: how long PostgreSQL may take; None for as long as it needs.
        Raises DatabaseUnavailable, InvalidMessage for a value that cannot be stored.
        """

        def whole(connection: Connection) -> T:
            if effect is Effect.RANKED:
                connection.execute(update(standing_version).values(version=standing_version.c.version + 1))
            return work(connection)

        try:
            for _ in range(CONFLICT_ATTEMPTS):
                try:
                    with self._errors_named():
                        if self.is_sqlite:
                            return await self._group.run(whole)
                        return await self._to_the_end(self._write_replicated(whole, turns), patience_s)
                except _WriteConflict as conflict:
                    last = conflict
            raise DatabaseUnavailable(f"the database kept refusing a write: {last}: try again") from last
        finally:
            for changed in Effect:
                self._revisions[changed] += changed <= effect

    def revision(self, effect: Effect) -> int:
        """A number that every write of this process raises which has that effect: earlier answers to what it
        changes are out of date."""
        return self._revisions[effect]

    async def _write_replicated(self, work: Callable[[Connection], T], turns: Collection[str]) -> T:
        async with self._writer.begin() as connection:
            if turns:
                await connection.execute(TAKE_TURNS, {"turns": list(turns)})
            return await connection.run_sync(work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads, on one snapshot. Raises DatabaseUnavailable, InvalidMessage."""
        with self._errors_named():
            if self.is_sqlite:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._readers, self._read_file, work)
            return await self._to_the_end(self._read_replicated(work), PATIENCE_S)

    def _read_file(self, work: Callable[[Connection], T]) -> T:
        with self._files.connect() as connection:
            return work(connection)

    async def _read_replicated(self, work: Callable[[Connection], T]) -> T:
        async with self._reader.connect() as connection:
            return await connection.run_sync(work)

    async def _to_the_end(self, work: Coroutine[Any, Any, T], patience_s: float | None) -> T:
        # In a task of its own: a caller that is cancelled must not leave a connection half-way.
        task = asyncio.create_task(_patiently(work, patience_s))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()

    async def close(self) -> None:
        """Finish what is under way and close every connection."""
        if self.is_sqlite:
            await self._group.close()
            self._readers.shutdown()
            self._files.dispose()
            return
        if self._running:
            await asyncio.wait(self._running)
        await self._reader.dispose()
        await self._writer.dispose()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError as error:
            raise _WriteConflict(str(error.orig)) from error
        except DBAPIError as error:
            if is_about_values(error):
                raise InvalidMessage(f"a field holds a value that cannot be stored: {error.orig}") from error
            if isinstance(error.orig, sqlite3.ProgrammingError):
                raise
            if is_conflict(error):
                raise _WriteConflict(str(error.orig)) from error
            raise DatabaseUnavailable(f"the database refused: {error.orig}: try again") from error
        except self._driver_errors as error:
            raise DatabaseUnavailable(f"the database refused: {error}: try again") from error
        except (OSError, TimeoutError, PoolTimeout) as error:
            reason = str(error) or type(error).__name__
            raise DatabaseUnavailable(f"the database cannot be reached: {reason}: try again") from error


async def _patiently(work: Coroutine[Any, Any, T], patience_s: float | None) -> T:
    async with asyncio.timeout(patience_s):
        return await work
