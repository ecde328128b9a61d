"""Connections to SQLite and PostgreSQL, set up for what the API promises of them."""

from typing import Any, Final

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import DataError, DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import QueuePool

from protocol.errors import ConfigError

BUSY_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 5.0
POOL_TIMEOUT_S: Final = 5.0
CONNECTIONS: Final = 10
"""Of each kind (reading, writing) that one replica keeps to PostgreSQL."""

SESSION: Final = {
    "application_name": "quasar-api",
    "timezone": "UTC",
    # A replica that was stopped in the middle of a transaction must not block the others for ever.
    "idle_in_transaction_session_timeout": "15s",
    "lock_timeout": "5s",
    "statement_timeout": "15s",
}


def sqlite_engine(url: URL, *, connections: int, begin: str, cache_kib: int) -> Engine:
    """An engine whose transactions start with `begin` and whose commits have reached the disk.

    `cache_kib`: how much of the file each connection may keep in memory.
    """
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=connections,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        # None: transactions begin where this module says and not where the driver guesses.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.execute(f"PRAGMA cache_size = -{cache_kib}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine


def postgresql_engine(url: URL, *, isolation_level: str) -> AsyncEngine:
    """An engine that notices connections which the server has dropped. Raises ConfigError without asyncpg."""
    try:
        return create_async_engine(
            url,
            isolation_level=isolation_level,
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,
            connect_args={"timeout": CONNECT_TIMEOUT_S, "server_settings": SESSION},
        )
    except ModuleNotFoundError as error:
        raise ConfigError(
            "api.database_url names PostgreSQL, which needs the package asyncpg: install it"
        ) from error


def driver_errors(url: URL) -> tuple[type[Exception], ...]:
    """What the driver raises by itself while it connects, before SQLAlchemy can name it."""
    if url.get_backend_name() == "sqlite":
        return ()
    import asyncpg  # Only here: an API on SQLite need not load it.

    return (asyncpg.PostgresError, asyncpg.InterfaceError)


def is_conflict(error: DBAPIError) -> bool:
    """True when the same transaction may succeed at its next try: deadlock, or a serialisation failure."""
    return getattr(error.orig, "sqlstate", None) in ("40001", "40P01")


def is_about_values(error: DBAPIError) -> bool:
    """True when a value given was at fault: too large, or text that the database cannot hold."""
    refused = isinstance(error, DataError) or isinstance(getattr(error.orig, "__cause__", None), ValueError)
    return refused or str(getattr(error.orig, "sqlstate", None)).startswith("22")
