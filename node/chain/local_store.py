"""The SQLite file behind the embedded local chain, shared by several processes."""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import ChainUnavailable, ConfigError

APPLICATION_ID = 0x51_55_41_53
"""'QUAS': tells a local chain from any other SQLite file."""
SCHEMA_VERSION = 2
BUSY_TIMEOUT_S = 5.0

SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
CREATE TABLE parameters (
    chain_id TEXT NOT NULL,
    genesis_unix_s REAL NOT NULL,
    block_time_s REAL NOT NULL,
    offset_blocks INTEGER NOT NULL,
    netuid INTEGER NOT NULL,
    owner_hotkey TEXT,
    tempo INTEGER NOT NULL,
    weights_rate_limit INTEGER NOT NULL,
    min_allowed_weights INTEGER NOT NULL,
    max_weight_u16 INTEGER NOT NULL,
    min_stake_rao INTEGER NOT NULL,
    version_key INTEGER NOT NULL,
    commit_reveal INTEGER NOT NULL,
    reveal_period_epochs INTEGER NOT NULL
);
CREATE TABLE neurons (
    uid INTEGER PRIMARY KEY,
    hotkey TEXT NOT NULL UNIQUE,
    coldkey TEXT NOT NULL,
    stake_rao INTEGER NOT NULL,
    validator_permit INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    last_update INTEGER NOT NULL DEFAULT 0,
    axon_ip TEXT,
    axon_port INTEGER
);
CREATE TABLE weights (
    uid INTEGER NOT NULL,
    target INTEGER NOT NULL,
    value INTEGER NOT NULL,
    PRIMARY KEY (uid, target)
);
CREATE TABLE weight_commits (
    id INTEGER PRIMARY KEY,
    uid INTEGER NOT NULL,
    block INTEGER NOT NULL,
    reveal_round INTEGER NOT NULL,
    data BLOB NOT NULL
);
CREATE TABLE commitments (
    hotkey TEXT PRIMARY KEY,
    block INTEGER NOT NULL,
    fields TEXT NOT NULL
);
"""


class LocalStore:
    """Transactions on one local chain file, safe between threads and between processes.

    The connection is opened on first use and again whenever the file was replaced, so that a chain
    that went away and came back is simply there again.
    """

    def __init__(self, path: Path, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = path
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._inode: tuple[int, int] | None = None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """One consistent snapshot; raises ChainUnavailable."""
        with self._transaction("BEGIN") as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that is written when the block ends; raises ChainUnavailable."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield connection

    def check(self) -> None:
        """Raise ConfigError unless the file is a local chain of this version."""
        if not self.path.is_file():
            raise ConfigError(
                f"local chain state {str(self.path)!r} does not exist: start it with `quasar-node devnet` "
                "or set chain.local_state to an existing file"
            )
        try:
            with self.reading() as connection:
                found = connection.execute("PRAGMA application_id").fetchone()[0]
                version = connection.execute("PRAGMA user_version").fetchone()[0]
        except ChainUnavailable as error:
            if isinstance(error.__cause__, sqlite3.OperationalError):
                raise
            raise ConfigError(f"{str(self.path)!r} is not a local chain: {error.__cause__}") from error
        if found != APPLICATION_ID:
            raise ConfigError(f"{str(self.path)!r} is a SQLite file but not a local chain")
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"local chain {str(self.path)!r} has version {version}, this node reads {SCHEMA_VERSION}: "
                "create a new one"
            )

    def close(self) -> None:
        """Release the file; a later transaction opens it again."""
        with self._lock:
            self._drop()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                connection = self._open()
                connection.execute(begin)
                try:
                    yield connection
                except BaseException:
                    connection.rollback()
                    raise
                connection.commit()
            except (sqlite3.Error, OSError) as error:
                self._drop()
                raise ChainUnavailable(f"local chain {str(self.path)!r} cannot be used: {error}") from error

    def _open(self) -> sqlite3.Connection:
        stat = self.path.stat()
        inode = (stat.st_dev, stat.st_ino)
        if self._connection is None or inode != self._inode:
            self._drop()
            # mode=rw: never create an empty file where a chain is missing.
            self._connection = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode=rw",
                uri=True,
                timeout=self._busy_timeout_s,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.row_factory = sqlite3.Row
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._inode = inode
        return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
