"""A subnet with a running API, and the parts of a miner on it."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.chain.local import LocalChain
from node.git import create_bare_repository
from node.settings_model import (
    ApiSection,
    ChainSection,
    MinerSection,
    NodeSection,
    Settings,
    WalletSection,
)
from tests.roles.api.harness import Client, Subnet, registration, running
from tests.roles.miner.harness import Miner, SwitchedProxy


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


@pytest.fixture
def api_settings(subnet: Subnet, tmp_path: Path) -> Settings:
    """Settings of the API; commitments may be revealed after ten blocks, for twenty blocks."""
    return Settings(
        node=NodeSection(data_dir=tmp_path / "api", drain_s=0.5, device="cpu"),
        chain=ChainSection(network="local", local_state=subnet.path, call_timeout_s=5.0),
        wallet=WalletSection(path=tmp_path / "wallets"),
        api=ApiSection(
            port=0,
            metagraph_max_age_s=0.2,
            writes_per_minute_per_ip=1000,
            writes_per_minute_per_hotkey=1000,
            blocks_until_reveal=10,
            reveal_window_blocks=20,
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


@pytest.fixture
def remote(tmp_path: Path) -> str:
    """An empty bare repository that stands for GitHub."""
    path = tmp_path / "fork.git"
    create_bare_repository(path)
    return path.as_uri()


@pytest.fixture
def settings(api_settings: Settings, remote: str, tmp_path: Path) -> Settings:
    """Settings of a miner on that subnet (its API's address is the proxy's)."""
    return api_settings.model_copy(
        update={
            "node": NodeSection(data_dir=tmp_path / "miner", drain_s=0.5, device="cpu"),
            "miner": MinerSection(
                fork_remote=remote, agent_iterations=3, optimization_interval_s=0.0, poll_s=0.1
            ),
        }
    )


@pytest.fixture
async def miner(
    settings: Settings, proxy: SwitchedProxy, subnet: Subnet, tmp_path: Path
) -> AsyncIterator[Miner]:
    """A miner's parts, which the test starts, kills and starts again."""
    (tmp_path / "miner").mkdir()
    with_url = settings.model_copy(update={"api": settings.api.model_copy(update={"url": proxy.url})})
    miner = Miner(with_url, subnet, subnet.miner)
    yield miner
    await miner.kill()
    shutil.rmtree(tmp_path / "miner", ignore_errors=True)
