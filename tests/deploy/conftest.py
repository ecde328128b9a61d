"""A subnet whose nodes are started by a supervisor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from node.chain import LocalChain
from node.git import create_bare_repository
from node.ports import free_port
from node.wallets import create_wallet
from tests.fakes.subnet import NETUID, registration
from tests.roles.conftest import models, tiny_model

__all__ = ["models", "service", "tiny_model"]

ROLES = ("api", "validator", "miner", "inference")


@dataclass(frozen=True)
class Service:
    """Settings files of every role on one local chain."""

    folder: Path
    configs: dict[str, Path]
    """By role; none needs another to be there before it starts."""
    api_url: str
    stranger_config: Path
    """A miner whose hotkey is not registered: it ends with exit code 77."""

    @property
    def api_config(self) -> Path:
        """Settings of the API."""
        return self.configs["api"]


@pytest.fixture
def service(tmp_path: Path, tiny_model: Path) -> Iterator[Service]:
    """An API, a validator, a miner with its inference server, and a miner that is not registered."""
    wallets = {
        name: create_wallet(tmp_path / "wallets", name)
        for name in ("api", "validator", "miner", "inference", "stranger")
    }
    chain = LocalChain.create(
        tmp_path / "chain.sqlite",
        block_time_s=0.25,
        netuid=NETUID,
        owner_hotkey=None,
        neurons=[
            registration(wallets["validator"], stake_tao=5000.0, validator_permit=True),
            *(registration(wallets[name]) for name in ("api", "miner", "inference")),
        ],
    )
    fork = tmp_path / "fork.git"
    create_bare_repository(fork)
    port = free_port()

    def written(name: str) -> Path:
        config: dict[str, Any] = {
            "node": {
                "data_dir": str(tmp_path / name),
                "log_format": "console",
                "device": "cpu",
                "metrics_port": 0,
                "watchdog_s": 15.0,
                "drain_s": 2.0,
            },
            "chain": {"network": "local", "local_state": str(chain.path), "call_timeout_s": 1.0},
            "wallet": {"path": str(tmp_path / "wallets"), "name": name},
            "api": {"port": port, "url": f"http://127.0.0.1:{port}"},
            # No rounds: what is looked at is the process.
            "miner": {"fork_remote": fork.as_uri(), "agent_iterations": 0, "serve_inference": False},
            "inference": {"host": "127.0.0.1", "port": 0, "reference_model": str(tiny_model)},
        }
        file = tmp_path / f"{name}.toml"
        file.write_text(tomli_w.dumps(config))
        return file

    configs = {role: written(role) for role in ROLES}
    yield Service(tmp_path, configs, f"http://127.0.0.1:{port}", written("stranger"))
    chain.close()
