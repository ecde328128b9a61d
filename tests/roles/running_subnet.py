"""Fixtures of a subnet with a running API, for the tests of those who call it."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.chain.local import LocalChain
from node.settings_model import (
    ApiSection,
    ChainSection,
    NodeSection,
    Settings,
    WalletSection,
)
from roles.api.database import SQLITE_FILE, Database, database_url
from roles.api.schema import upgrade
from tests.node.chain.fronts import IN_PROCESS, chain_section
from tests.roles.api.harness import Client, Subnet, registration, running
from tests.roles.proxy import SwitchedProxy


@pytest.fixture(autouse=True)
def private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the SDK caches stays in the test's folder; the environment is restored afterwards."""
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))


@pytest.fixture
def subnet(tmp_path: Path) -> Subnet:
    """A validator and two miners; blocks come only when a test asks for them."""
    path = tmp_path / "chain.sqlite"
    chain = LocalChain.create(
        path,
        block_time_s=3600.0,
        netuid=24,
        owner_hotkey=None,
        neurons=[
            registration("validator", "cold-v", 5000.0, permit=True),
            registration("miner", "cold-m"),
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
def front_kind() -> str:
    """How the chain is reached; modules that test the chain run over both fronts."""
    return IN_PROCESS


@pytest.fixture
async def chain_settings(front_kind: str, subnet: Subnet) -> AsyncIterator[ChainSection]:
    """Settings that lead to the subnet's chain."""
    async with chain_section(front_kind, subnet.path, subnet.chain) as section:
        yield section


@pytest.fixture
def api_settings(chain_settings: ChainSection, migrated: Path, tmp_path: Path) -> Settings:
    """Settings of the API; commitments may be revealed after ten blocks, for twenty blocks."""
    (tmp_path / "api").mkdir(mode=0o700)
    shutil.copyfile(migrated, tmp_path / "api" / SQLITE_FILE)
    return Settings(
        node=NodeSection(data_dir=tmp_path / "api", drain_s=0.5, device="cpu"),
        chain=chain_settings,
        wallet=WalletSection(path=tmp_path / "wallets"),
        api=ApiSection(
            port=0,
            metagraph_max_age_s=0.2,
            writes_per_minute_per_ip=1000,
            writes_per_minute_per_hotkey=1000,
            blocks_until_reveal=10,
            reveal_window_blocks=20,
            infrastructure_retry_s=0.05,
        ),
    )


@pytest.fixture
async def api(api_settings: Settings) -> AsyncIterator[Client]:
    """The running API."""
    async with running(api_settings) as client:
        yield client


@pytest.fixture
async def proxy(api: Client) -> AsyncIterator[SwitchedProxy]:
    """Between miner and API: counts requests, and can be told to fail."""
    async with SwitchedProxy.serve(api.url) as proxy:
        yield proxy
