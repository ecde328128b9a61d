"""Brings the database to the schema that this version of the API needs."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text

from protocol.errors import ConfigError
from roles.api.database import Database

HEAD: Final = "0004"
"""Revision that the code was written for; a test compares it with the newest migration."""
LOCK_KEY: Final = 7_231_942_117
MIGRATIONS: Final = Path(__file__).parent / "migrations"


async def upgrade(database: Database) -> None:
    """Apply what is missing, under a lock, in one transaction.

    Raises ConfigError for a database written by a newer version, DatabaseUnavailable.
    """
    await database.write(_upgrade, patience_s=None)


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        # Replicas start together, and a large table takes its time.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
    # Alembic takes half a second to import: most starts find the schema as it should be.
    if revision_of(connection) != HEAD:
        run_migrations(connection)


def revision_of(connection: Connection) -> str | None:
    """The revision that the database is at, None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return revision


def run_migrations(connection: Connection, revision: str = "head") -> None:
    """Upgrade to a revision, the newest by default, on a connection whose transaction the caller owns."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise ConfigError(
            f"the database is at revision {revision_of(connection)}, which this version does not know: "
            "run the version that wrote it, or restore a backup"
        ) from error
