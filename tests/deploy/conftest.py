"""A subnet whose API is started by a supervisor."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from node.chain import LocalChain
from node.wallets import create_wallet
from tests.fakes.subnet import NETUID, registration
from tests.fakes.subtensor.process import free_port


@dataclass(frozen=True)
class Service:
    """Settings files of two roles on one local chain."""

    folder: Path
    api_config: Path
    api_url: str
    stranger_config: Path
    """A miner whose hotkey is not registered: it ends with exit code 77."""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """An API and a miner that is not registered."""
    known, stranger = (create_wallet(tmp_path / "wallets", name) for name in ("known", "stranger"))
    chain = LocalChain.create(
        tmp_path / "chain.sqlite",
        block_time_s=0.25,
        netuid=NETUID,
        owner_hotkey=None,
        neurons=[registration(known)],
    )
    del stranger
    port = free_port()

    def written(name: str) -> Path:
        config: dict[str, Any] = {
            "node": {
                "data_dir": str(tmp_path / name),
                "log_format": "console",
                "device": "cpu",
                "metrics_port": 0,
                "watchdog_s": 4.0,
                "drain_s": 2.0,
            },
            "chain": {"network": "local", "local_state": str(chain.path), "call_timeout_s": 1.0},
            "wallet": {"path": str(tmp_path / "wallets"), "name": name},
            "api": {"port": port, "url": f"http://127.0.0.1:{port}"},
            "miner": {"fork_remote": (tmp_path / "fork.git").as_uri()},
        }
        file = tmp_path / f"{name}.toml"
        file.write_text(tomli_w.dumps(config))
        return file

    yield Service(tmp_path, written("known"), f"http://127.0.0.1:{port}", written("stranger"))
    chain.close()
