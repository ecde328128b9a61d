"""A running API: the real graph, real HTTP, SQLite and PostgreSQL, local chain and hotkeys."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import URL

from node.chain.local import LocalChain
from node.settings_model import ApiSection, ChainSection, NodeSection, Settings, WalletSection
from roles.api.database import SQLITE_FILE, Database, database_url
from roles.api.schema import upgrade
from tests.roles.api.harness import Client, Subnet, registration, running, with_api
from tests.roles.postgres import PostgresServer, postgres_server


@pytest.fixture
def subnet(tmp_path: Path) -> Subnet:
    """A subnet with validators, one of them too poor, miners, and a stranger who is not registered."""

    path = tmp_path / "chain.sqlite"
    chain = LocalChain.create(
        path,
        block_time_s=3600.0,
        netuid=24,
        owner_hotkey=None,
        neurons=[
            registration("validator", "cold-v", 5000.0, permit=True),
            registration("validator2", "cold-w", 5000.0, permit=True),
            registration("poor", "cold-p", 10.0, permit=True),
            registration("miner", "cold-m"),
            registration("sibling", "cold-m"),
            registration("rival", "cold-r"),
        ],
    )
    return Subnet(path, chain)


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite database that the migrations made, once."""
    folder = tmp_path_factory.mktemp("migrated")
    asyncio.run(_migrate(database_url(None, folder)))
    return folder / SQLITE_FILE


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_template(postgres: PostgresServer) -> str:
    """An empty PostgreSQL database that the migrations made, once."""
    name = postgres.create_database()
    asyncio.run(_migrate(database_url(postgres.url(name), Path())))
    return name


async def _migrate(url: URL) -> None:
    database = Database(url)
    await upgrade(database)
    await database.close()


@pytest.fixture
def postgres_url(postgres: PostgresServer, postgres_template: str) -> SecretStr:
    """DATABASE_URL of a fresh database at the newest schema."""
    return SecretStr(postgres.url(postgres.create_database(postgres_template)))


@pytest.fixture
def base_settings(subnet: Subnet, tmp_path: Path) -> Settings:
    """Settings of an API on that subnet, on a SQLite file that is not there yet."""
    (tmp_path / "data").mkdir(mode=0o700)
    return Settings(
        node=NodeSection(data_dir=tmp_path / "data", drain_s=1.0),
        chain=ChainSection(network="local", local_state=subnet.path, call_timeout_s=5.0),
        wallet=WalletSection(path=tmp_path / "wallets"),
        api=ApiSection(
            port=0,
            metagraph_max_age_s=0.2,
            writes_per_minute_per_ip=1000,
        ),
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, base_settings: Settings) -> Settings:
    """Settings of an API on that subnet, its database ready; each test runs on both kinds."""
    if request.param == "postgresql":
        return with_api(base_settings, database_url=request.getfixturevalue("postgres_url"))
    shutil.copyfile(request.getfixturevalue("migrated"), base_settings.node.data_dir / SQLITE_FILE)
    return base_settings


@pytest.fixture
def replicated(base_settings: Settings, postgres_url: SecretStr) -> Settings:
    """Settings of an API whose replicas share one PostgreSQL database."""
    return with_api(base_settings, database_url=postgres_url)


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Client]:
    """A running API with the default settings."""
    async with running(settings) as client:
        yield client
