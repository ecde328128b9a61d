"""Migrations and what the database refuses."""

import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, create_engine, insert, select, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from node.settings_model import Settings
from protocol.errors import ConfigError
from roles.api.database import Database, DatabaseUnavailable, database_url
from roles.api.schema import HEAD, MIGRATIONS, run_migrations, upgrade
from roles.api.tables import metadata, nonces, submissions
from roles.api.wiring import build
from tests.roles.api.harness import url_of, with_api

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


async def test_migrations_give_the_tables_of_the_code(tmp_path: Path) -> None:
    database = Database(database_url(None, tmp_path))
    await upgrade(database)
    await upgrade(database)
    await database.close()

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    engine = create_engine(f"sqlite:///{tmp_path / 'api.sqlite'}")
    with engine.connect() as connection:
        assert differences(connection) == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == HEAD
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    engine.dispose()


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [HEAD]


def test_tables_compile_for_postgresql() -> None:
    for table in metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))
        for index in table.indexes:
            compiled = str(CreateIndex(index).compile(dialect=postgresql.dialect()))
            assert index.name is not None
            assert len(str(index.name)) <= 63, compiled


OLD_SUBMISSION = text(
    "INSERT INTO submissions (id, miner_hotkey, miner_coldkey, target_sequence_length, created_at, "
    "judged_at) VALUES (:id, :hotkey, 'c', 1000, :created_at, :judged_at)"
)
OLD_VERDICT = text(
    "INSERT INTO verdicts (submission_id, validator_hotkey, lease_id, attempt, is_final, status, fault, "
    "measured_tokens_per_sec, gpu, versions, rules_version, evidence, signature, created_at) VALUES "
    "(:id, :validator, :lease, 1, :final, :status, :fault, :measured, 'cpu', '{}', 1, '{}', '00', "
    ":created_at)"
)


def fill_first_schema(connection: Connection) -> None:
    """A database as the first version left it: two judged submissions and one that waits."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    run_migrations(connection, "0001")
    for number, judged_at in ((1, MOMENT), (2, MOMENT), (3, None)):
        connection.execute(
            OLD_SUBMISSION,
            {"id": number, "hotkey": f"m{number}", "created_at": MOMENT, "judged_at": judged_at},
        )
    for number, validator, status, fault, measured in (
        (1, "a", "passed", "nobody", 10.0),
        (1, "b", "passed", "nobody", 30.0),
        (1, "c", "crashed", "miner", None),
        (2, "a", "crashed", "miner", None),
    ):
        given = {"id": number, "validator": validator, "lease": f"{number}{validator}", "final": True}
        given |= {"status": status, "fault": fault, "measured": measured, "created_at": MOMENT}
        connection.execute(OLD_VERDICT, given)


async def test_verdicts_of_an_older_database_are_pooled(settings: Settings, tmp_path: Path) -> None:
    """From 0001, with verdicts in it: who was ranked stays ranked."""
    url = url_of(settings)
    database = Database(database_url(None, tmp_path) if url.get_backend_name() == "sqlite" else url)
    await database.write(fill_first_schema)
    await upgrade(database)
    columns = ("pooled_status", "pooled_fault", "pooled_tokens_per_sec", "settled_at")
    query = select(*(submissions.c[name] for name in columns)).order_by(submissions.c.id)
    found = await database.read(lambda connection: connection.execute(query).all())
    await database.close()
    assert found == [
        ("passed", "nobody", 20.0, MOMENT),
        ("crashed", "miner", None, MOMENT),
        (None, None, None, None),
    ]


async def test_database_of_a_newer_version(tmp_path: Path) -> None:
    database = Database(database_url(None, tmp_path))
    await upgrade(database)

    def pretend(connection: Connection) -> None:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    await database.write(pretend)
    with pytest.raises(ConfigError, match="9999"):
        await upgrade(database)
    await database.close()


async def test_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    database = Database(database_url(None, tmp_path))
    await upgrade(database)

    def half(connection: Connection) -> None:
        connection.execute(insert(nonces).values(hotkey="a", nonce_ns=1, seen_at=datetime.now(UTC)))
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        await database.write(half)

    def count(connection: Connection) -> int:
        return int(connection.execute(text("SELECT count(*) FROM nonces")).scalar_one())

    assert await database.read(count) == 0
    await database.close()


async def test_locked_and_full_databases_are_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roles.api.engines.BUSY_TIMEOUT_S", 0.1)
    database = Database(database_url(None, tmp_path))
    await upgrade(database)

    def nothing(connection: Connection) -> None:
        connection.execute(text("SELECT 1"))

    other = sqlite3.connect(tmp_path / "api.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailable, match="locked"):
        await database.write(nothing)
    other.execute("ROLLBACK")
    other.close()
    await database.write(nothing)

    def fill(connection: Connection) -> None:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()
        connection.execute(text(f"PRAGMA max_page_count = {pages + 1}"))
        connection.execute(text("CREATE TABLE big AS SELECT randomblob(1000000) AS data"))

    with pytest.raises(DatabaseUnavailable, match="full"):
        await database.write(fill)
    await database.close()


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:////tmp/x.sqlite", "sqlite"),
        ("postgresql://user:secret@host/name", "postgresql+asyncpg"),
        ("postgres://user:secret@host/name", "postgresql+asyncpg"),
    ],
)
def test_database_urls(given: str, driver: str, tmp_path: Path) -> None:
    assert database_url(given, tmp_path).drivername == driver


@pytest.mark.parametrize(
    "given",
    ["", "nonsense", "mysql://user:secret@host/name", "sqlite://", "sqlite:///:memory:", "odd://secret"],
)
def test_database_urls_that_are_refused(given: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        database_url(given, tmp_path)
    assert "secret" not in str(caught.value)


async def test_database_url_of_the_settings_is_used(base_settings: Settings, tmp_path: Path) -> None:
    url = SecretStr(f"sqlite:///{tmp_path / 'elsewhere.sqlite'}")
    graph = await build(with_api(base_settings, database_url=url))
    for close in reversed(graph.closers):
        await close()
    assert (tmp_path / "elsewhere.sqlite").exists()
    assert not (base_settings.node.data_dir / "api.sqlite").exists()


async def test_proxy_that_is_no_network(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="the-proxy"):
        await build(with_api(settings, trusted_proxies=("the-proxy",)))
