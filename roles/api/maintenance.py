"""Looking after the API's database: what it holds, whether it is sound, copies of it."""

import os
import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Table, func, select, text

from node.locks import FileLock
from node.settings_model import Settings
from protocol.errors import ConfigError, UsageError
from roles.api.database import Database, database_url
from roles.api.schema import HEAD, revision_of, upgrade
from roles.api.tables import rounds, submissions, verdicts


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check found; `problems` are sentences, none when all is well."""

    kind: str
    revision: str | None
    submissions: int
    verdicts: int
    problems: tuple[str, ...]


def open_configured(settings: Settings) -> Database:
    """The database of the settings, as it is. Raises ConfigError."""
    secret = settings.api.database_url
    return Database(database_url(secret.get_secret_value() if secret else None, settings.node.data_dir))


def lock_on(path: Path) -> FileLock:
    """The lock that an API on a SQLite file holds while it runs."""
    return FileLock(path.with_name(path.name + ".lock"), f"the API's database {path}")


async def upgrade_configured(settings: Settings) -> str:
    """Bring the database to this version's schema and return the revision.

    Raises ConfigError, DeviceBusy (an API runs on the file), DatabaseUnavailable.
    """
    database = open_configured(settings)
    try:
        if not database.is_sqlite:
            await upgrade(database)
            return HEAD
        path = Path(str(database.url.database))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock_on(path):
            await upgrade(database)
    finally:
        await database.close()
    return HEAD


async def check_configured(settings: Settings) -> Findings:
    """Look whether the database is sound and of this version. Raises ConfigError, DatabaseUnavailable."""
    database = open_configured(settings)
    try:
        if database.is_sqlite:
            _sqlite_path(settings, "")
        return await database.read(_check)
    finally:
        await database.close()


def _check(connection: Connection) -> Findings:
    kind = connection.dialect.name
    problems: list[str] = []
    if kind == "sqlite":
        problems += [
            f"integrity: {row[0]}"
            for row in connection.execute(text("PRAGMA integrity_check"))
            if row[0] != "ok"
        ]
        problems += [
            f"row {row[1]} of {row[0]} refers to nothing in {row[2]}"
            for row in connection.execute(text("PRAGMA foreign_key_check"))
        ]
    revision = revision_of(connection)
    if revision != HEAD:
        problems.append(f"the schema is at revision {revision}, this version needs {HEAD}: db upgrade")
        return Findings(kind, revision, 0, 0, tuple(problems))
    open_rounds = connection.execute(
        select(func.count()).select_from(rounds).where(rounds.c.status == "open")
    ).scalar_one()
    if open_rounds > 1:
        problems.append(f"{open_rounds} rounds are open, not one")
    counts = _count(connection, submissions), _count(connection, verdicts)
    return Findings(kind, revision, *counts, tuple(problems))


def _count(connection: Connection, table: Table) -> int:
    return int(connection.execute(select(func.count()).select_from(table)).scalar_one())


def back_up(settings: Settings, target: Path) -> None:
    """Copy a SQLite database, also while the API writes to it, and check the copy.

    Raises UsageError for PostgreSQL and for a target that exists.
    """
    source = _sqlite_path(settings, "pg_dump --format=custom")
    if target.exists():
        raise UsageError(f"{target} exists: name a new file")
    partial = target.with_name(target.name + ".partial")
    live = sqlite3.connect(f"file:{source}?mode=ro", uri=True)
    copy = sqlite3.connect(partial)
    with closing(live), closing(copy):
        live.backup(copy)
        # One file, that can be copied as it is.
        copy.execute("PRAGMA journal_mode = DELETE")
    _check_file(partial)
    partial.rename(target)


def restore(settings: Settings, source: Path) -> None:
    """Put a backup in the place of the SQLite database, which is kept beside it under another name.

    Raises UsageError (also when one kept earlier is in the way), ConfigError for a backup that is not sound,
    DeviceBusy while an API runs on the file.
    """
    target = _sqlite_path(settings, "pg_restore --clean", must_exist=False)
    if not source.is_file():
        raise UsageError(f"{source} is no file: name a backup")
    _check_file(source)
    kept = target.with_name(f"{target.name}.replaced")
    if kept.exists():
        raise UsageError(f"{kept} is still there from an earlier restore: move it away first")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with lock_on(target):
        partial = target.with_name(target.name + ".partial")
        shutil.copyfile(source, partial)
        with partial.open("rb") as copied:
            os.fsync(copied.fileno())
        for suffix in ("", "-wal", "-shm"):
            old = target.with_name(target.name + suffix)
            if old.exists():
                # The log belongs to the file that it was written for, and goes with it.
                old.rename(kept.with_name(kept.name + suffix))
        partial.rename(target)


def _sqlite_path(settings: Settings, instead: str, *, must_exist: bool = True) -> Path:
    secret = settings.api.database_url
    url = database_url(secret.get_secret_value() if secret else None, settings.node.data_dir)
    if url.get_backend_name() != "sqlite":
        raise UsageError(f"the database is PostgreSQL: use its own tools ({instead})")
    path = Path(str(url.database))
    if must_exist and not path.is_file():
        raise ConfigError(f"there is no database {path}: start the API, or `quasar-node db upgrade`")
    return path


def _check_file(path: Path) -> None:
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            [(verdict,)] = connection.execute("PRAGMA integrity_check").fetchall()
            connection.execute("SELECT version_num FROM alembic_version").fetchall()
    except (sqlite3.DatabaseError, ValueError) as error:
        raise ConfigError(f"{path} is no sound copy of an API database: {error}") from error
    if verdict != "ok":
        raise ConfigError(f"{path} is no sound copy of an API database: {verdict}")
