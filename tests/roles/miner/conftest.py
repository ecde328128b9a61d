"""The parts of a miner on a subnet with a running API."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from node.git import create_bare_repository
from node.settings_model import MinerSection, NodeSection, Settings
from tests.roles.api.harness import Subnet
from tests.roles.miner.harness import Miner
from tests.roles.proxy import SwitchedProxy
from tests.roles.running_subnet import (
    api,
    api_settings,
    chain_settings,
    front_kind,
    migrated,
    private_caches,
    proxy,
    subnet,
)

__all__ = [
    "api",
    "api_settings",
    "chain_settings",
    "front_kind",
    "migrated",
    "private_caches",
    "proxy",
    "subnet",
]


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
