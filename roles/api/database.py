"""The API's database: one transaction per state change, acknowledged when it is durable.

SQLite has one writer: writes take turns here instead of colliding there. PostgreSQL takes the same calls.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

from protocol.errors import ConfigError, Unavailable

T = TypeVar("T")

BUSY_TIMEOUT_S = 5.0
CONFLICT_ATTEMPTS = 3
READERS = 4
POSTGRESQL_CONNECTIONS = 10
SQLITE_FILE = "api.sqlite"


class DatabaseUnavailable(Unavailable):
    """The database did not take or give data: it is away, locked, or its disk is full."""


class _WriteConflict(Exception):
    """Another transaction wrote the same unique thing first."""


def database_url(text: str | None, data_dir: Path) -> URL:
    """The SQLAlchemy URL for a setting; without one, SQLite in the data directory.

    `postgres://` and `sqlite://` are given their asynchronous drivers. Raises ConfigError.
    """
    if text is None:
        return URL.create("sqlite+aiosqlite", database=str(data_dir / SQLITE_FILE))
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
        return url.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+asyncpg")
    raise ConfigError(f"api.database_url uses {backend}: only sqlite and postgresql are supported")


class Database:
    """Connections to one database; `write` and `read` are the only ways in."""

    def __init__(self, url: URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        if self.is_sqlite:
            self._writer = _sqlite_engine(url, size=1, begin="BEGIN IMMEDIATE")
            self._reader = _sqlite_engine(url, size=READERS, begin="BEGIN")
        else:
            self._writer = self._reader = _postgresql_engine(url)
        self._turn = asyncio.Lock()
        self.revision = 0
        """Raised by every write that is not quiet: what was computed before may be out of date."""

    async def write(self, work: Callable[[AsyncConnection], Awaitable[T]], *, quiet: bool = False) -> T:
        """Run `work` in one transaction and return its result once that is durable.

        Nothing is written when `work` raises. It reads before it inserts, so when another replica wrote the
        same unique thing first it is run again and finds it. `quiet`: nothing that the standing
        shows changes. Raises DatabaseUnavailable.
        """
        try:
            for _ in range(CONFLICT_ATTEMPTS):
                try:
                    return await self._write_once(work)
                except _WriteConflict as conflict:
                    last = conflict
            raise DatabaseUnavailable(f"the database kept refusing a write: {last}: try again") from last
        finally:
            if not quiet:
                self.revision += 1

    async def _write_once(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with _errors_named():
            if self.is_sqlite:
                async with self._turn, self._writer.begin() as connection:
                    return await work(connection)
            async with self._writer.begin() as connection:
                return await work(connection)

    async def read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work`, which only reads, on one snapshot. Raises DatabaseUnavailable."""
        async with _errors_named(), self._reader.connect() as connection:
            return await work(connection)

    async def close(self) -> None:
        """Close every connection."""
        await self._reader.dispose()
        if self._writer is not self._reader:
            await self._writer.dispose()


@asynccontextmanager
async def _errors_named() -> AsyncIterator[None]:
    try:
        yield
    except IntegrityError as error:
        raise _WriteConflict(str(error.orig)) from error
    except DBAPIError as error:
        if isinstance(error.orig, sqlite3.ProgrammingError):
            raise
        raise DatabaseUnavailable(f"the database refused: {error.orig}: try again") from error
    except (OSError, TimeoutError, PoolTimeout) as error:
        raise DatabaseUnavailable(f"the database cannot be reached: {error}: try again") from error


def _sqlite_engine(url: URL, *, size: int, begin: str) -> AsyncEngine:
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=size,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        # None: transactions begin where this module says and not where the driver guesses.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute("PRAGMA cache_size = -16000")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgresql_engine(url: URL) -> AsyncEngine:
    try:
        return create_async_engine(url, pool_size=POSTGRESQL_CONNECTIONS, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ConfigError(
            "api.database_url names PostgreSQL, which needs the package asyncpg: install it"
        ) from error
