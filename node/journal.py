"""What a node must not forget across a crash: records in SQLite, on disk before a call returns."""

import errno
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from node.clock import Clock, SystemClock
from node.group_commit import GroupCommit
from node.journal_key import Cipher, load_key
from protocol.errors import ConfigError, JournalError

__all__ = ["Journal", "Record", "load_key"]

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0
PAGE_RECORDS: Final = 200
DISK_FAULTS: Final = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO))
"""Pass, or are for whoever cares for the disk; whatever else keeps a file from being made is a setting."""
KEY_CHECK_TEXT = "quasar-journal"
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT;
CREATE TABLE records (
    kind TEXT NOT NULL,
    key TEXT NOT NULL,
    state TEXT NOT NULL,
    data TEXT NOT NULL,
    secret BLOB,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (kind, key)
) STRICT;
CREATE INDEX records_by_state ON records (kind, state);
"""
_COLUMNS = "kind, key, state, data, secret, created_at, updated_at"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One remembered thing, found by kind and key; `secret` is encrypted on disk."""

    kind: str
    key: str
    state: str
    data: dict[str, Any]
    secret: str | None
    created_at: datetime
    updated_at: datetime

    def __repr__(self) -> str:
        return f"Record(kind={self.kind!r}, key={self.key!r}, state={self.state!r}, data={self.data!r})"


Records = list[Record]
Keys = list[str]
"""Names outside the class below, whose method `list` hides the builtin."""


class Journal:
    """Records by (kind, key), each with a state and JSON data; every method returns after the disk has it.

    `key`: 32 bytes, see `load_key`. Every change is idempotent, so that a replay after a crash is harmless.
    Raises ConfigError when the file is no journal, belongs to a newer version or was written with another
    key, JournalError when the disk refuses.
    """

    def __init__(self, path: Path, key: bytes, *, clock: Clock | None = None) -> None:
        self._path = path
        self._cipher = Cipher(key)
        self._clock = clock if clock is not None else SystemClock()
        self._database = self._open()
        # What falls due at the same block is written at the same time: it should not queue for the disk.
        self._group = GroupCommit(self._database, path, thread_name="journal")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the file; calls made before are finished first."""
        await self._group.close()

    async def put(
        self, kind: str, key: str, state: str, data: dict[str, Any], secret: str | None = None
    ) -> None:
        """Write a whole record, in place of an older one (whose `created_at` stays)."""
        await self._write(lambda: self._put(kind, key, state, data, secret))

    async def update(
        self, kind: str, key: str, *, state: str | None = None, data: dict[str, Any] | None = None
    ) -> Record:
        """Change the state, and merge `data` into the record's; the secret stays. The record as it is now.

        Raises JournalError when there is no such record.
        """
        return await self._write(lambda: self._update(kind, key, state, data))

    async def get(self, kind: str, key: str) -> Record | None:
        """The record, None when there is none."""
        return await self._read(lambda: self._get(kind, key))

    async def list(
        self,
        kind: str,
        states: Collection[str] | None = None,
        *,
        where: Mapping[str, str | int] | None = None,
        newest: int | None = None,
    ) -> Records:
        """Records of a kind, oldest first; all, or those in one of `states`, whose data holds what `where`
        says, and of these the `newest` ones."""
        return await self._read(lambda: self._list(kind, states, where or {}, newest))

    async def pages(self, kind: str) -> AsyncIterator[Records]:
        """Every record of a kind, oldest first, some hundred at a time: all at once may not fit into memory.

        Each list is as the disk has it when it is asked for.
        """
        keys = await self._read(lambda: self._keys(kind))
        for start in range(0, len(keys), PAGE_RECORDS):
            yield await self._read(partial(self._some, kind, keys[start : start + PAGE_RECORDS]))

    async def delete(self, kind: str, key: str) -> None:
        """Forget a record; nothing happens when there is none."""
        await self._write(lambda: self._delete(kind, key))

    async def _read(self, act: Callable[[], T]) -> T:
        return await self._run(act, is_write=False)

    async def _write(self, act: Callable[[], T]) -> T:
        return await self._run(act, is_write=True)

    async def _run(self, act: Callable[[], T], *, is_write: bool) -> T:
        try:
            return await self._group.run(act, is_write=is_write)
        except sqlite3.Error as error:
            raise JournalError(
                f"journal {self._path}: {error}: check the disk and that no other program has the file open"
            ) from error

    def _open(self) -> sqlite3.Connection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Before SQLite makes it, which would follow the umask.
            self._path.touch(mode=0o600, exist_ok=True)
            database = sqlite3.connect(
                self._path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
        except OSError as error:
            wrong = JournalError if error.errno in DISK_FAULTS else ConfigError
            raise wrong(f"journal {self._path} cannot be opened: {error}") from error
        except sqlite3.Error as error:
            raise JournalError(f"journal {self._path} cannot be opened: {error}") from error
        try:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            self._prepare(database)
        except sqlite3.OperationalError as error:
            # A full disk, a file that somebody else has open: over without anybody's doing anything to it.
            database.close()
            raise JournalError(f"journal {self._path} cannot be used: {error}: check the disk") from error
        except sqlite3.Error as error:
            database.close()
            raise ConfigError(
                f"journal {self._path} cannot be used: {error}: move it away or restore it"
            ) from error
        except ConfigError:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        """Make the tables in a new file; check version and key of an old one."""
        database.execute("BEGIN IMMEDIATE")
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    database.execute(statement)
                check = self._cipher.seal(KEY_CHECK_TEXT, "meta", "key_check")
                database.execute("INSERT INTO meta VALUES ('key_check', ?)", (check,))
                database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version > SCHEMA_VERSION:
                raise ConfigError(
                    f"journal {self._path} has version {version}, this program knows {SCHEMA_VERSION}: "
                    "install the newer quasar-node"
                )
            else:
                self._check_key(database)
            database.execute("COMMIT")
        except BaseException:
            database.execute("ROLLBACK")
            raise

    def _check_key(self, database: sqlite3.Connection) -> None:
        row = database.execute("SELECT value FROM meta WHERE name = 'key_check'").fetchone()
        if row is None or self._cipher.open(row[0], "meta", "key_check") != KEY_CHECK_TEXT:
            raise ConfigError(
                f"journal {self._path} was written with another key: restore its journal.key "
                "(or QUASAR_JOURNAL_KEY), or move the journal away and lose its pending reveals"
            )

    def _now(self) -> str:
        return self._clock.now().astimezone(UTC).isoformat()

    def _put(self, kind: str, key: str, state: str, data: dict[str, Any], secret: str | None) -> None:
        old = self._get(kind, key)
        if old is not None and (old.state, old.data, old.secret) == (state, data, secret):
            return
        sealed = None if secret is None else self._cipher.seal(secret, kind, key)
        now = self._now()
        self._database.execute(
            f"INSERT INTO records ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) "  # noqa: S608 - constant columns
            "ON CONFLICT (kind, key) DO UPDATE SET state = excluded.state, data = excluded.data, "
            "secret = excluded.secret, updated_at = excluded.updated_at",
            (kind, key, state, _dump(data), sealed, now, now),
        )

    def _update(self, kind: str, key: str, state: str | None, data: dict[str, Any] | None) -> Record:
        old = self._get(kind, key)
        if old is None:
            raise JournalError(f"journal {self._path} has no {kind} {key!r} to change")
        new_state = old.state if state is None else state
        new_data = old.data | (data or {})
        if (new_state, new_data) != (old.state, old.data):
            self._database.execute(
                "UPDATE records SET state = ?, data = ?, updated_at = ? WHERE kind = ? AND key = ?",
                (new_state, _dump(new_data), self._now(), kind, key),
            )
        record = self._get(kind, key)
        assert record is not None
        return record

    def _get(self, kind: str, key: str) -> Record | None:
        row = self._database.execute(
            f"SELECT {_COLUMNS} FROM records WHERE kind = ? AND key = ?",  # noqa: S608 - constant columns
            (kind, key),
        ).fetchone()
        return None if row is None else self._record(row)

    def _list(
        self, kind: str, states: Collection[str] | None, where: Mapping[str, str | int], newest: int | None
    ) -> Records:
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM records WHERE kind = ?1 "  # noqa: S608 - constant columns
            "AND (?2 IS NULL OR state IN (SELECT value FROM json_each(?2))) "
            "AND NOT EXISTS (SELECT 1 FROM json_each(?3) AS wanted "
            "WHERE json_extract(data, '$.' || wanted.key) IS NOT wanted.value) "
            "ORDER BY created_at DESC, rowid DESC LIMIT ?4",
            (
                kind,
                None if states is None else json.dumps(sorted(states)),
                json.dumps(dict(where)),
                -1 if newest is None else newest,
            ),
        ).fetchall()
        return [self._record(row) for row in reversed(rows)]

    def _keys(self, kind: str) -> Keys:
        rows = self._database.execute(
            "SELECT key FROM records WHERE kind = ? ORDER BY created_at, rowid", (kind,)
        )
        return [key for (key,) in rows]

    def _some(self, kind: str, keys: Keys) -> Records:
        return [record for key in keys if (record := self._get(kind, key)) is not None]

    def _delete(self, kind: str, key: str) -> None:
        self._database.execute("DELETE FROM records WHERE kind = ? AND key = ?", (kind, key))

    def _record(self, row: tuple[str, str, str, str, bytes | None, str, str]) -> Record:
        kind, key, state, data, sealed, created_at, updated_at = row
        secret = None if sealed is None else self._cipher.open(sealed, kind, key)
        if sealed is not None and secret is None:
            raise JournalError(f"journal {self._path}: the secret of {kind} {key!r} was changed on disk")
        return Record(
            kind=kind,
            key=key,
            state=state,
            data=json.loads(data),
            secret=secret,
            created_at=datetime.fromisoformat(created_at),
            updated_at=datetime.fromisoformat(updated_at),
        )


def _dump(data: dict[str, Any]) -> str:
    # NaN is no JSON, and a record with it could not be compared with itself.
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
