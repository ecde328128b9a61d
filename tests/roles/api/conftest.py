"""A running API: the real graph, real HTTP, SQLite, local chain and hotkeys."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.chain.local import LocalChain
from node.settings_model import ApiSection, ChainSection, NodeSection, Settings, WalletSection
from roles.api.database import SQLITE_FILE, Database, database_url
from roles.api.schema import upgrade
from tests.roles.api.harness import Client, Subnet, registration, running


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
    """An empty database that the migrations made, once."""
    folder = tmp_path_factory.mktemp("migrated")

    async def migrate() -> None:
        database = Database(database_url(None, folder))
        await upgrade(database)
        await database.close()

    asyncio.run(migrate())
    return folder / SQLITE_FILE


@pytest.fixture
def settings(subnet: Subnet, migrated: Path, tmp_path: Path) -> Settings:
    """Settings of an API on that subnet, its database ready."""
    (tmp_path / "data").mkdir(mode=0o700)
    shutil.copyfile(migrated, tmp_path / "data" / SQLITE_FILE)
    return Settings(
        node=NodeSection(data_dir=tmp_path / "data", drain_s=1.0),
        chain=ChainSection(network="local", local_state=subnet.path, call_timeout_s=5.0),
        wallet=WalletSection(path=tmp_path / "wallets"),
        api=ApiSection(port=0, metagraph_max_age_s=0.2, writes_per_minute_per_ip=1000),
    )


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Client]:
    """A running API with the default settings."""
    async with running(settings) as client:
        yield client
