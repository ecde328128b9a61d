"""A local chain with one validator and three miners, whose wallets lie on disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import bittensor as bt
import pytest

from node.chain import LocalChain, Registration
from node.wallets import create_wallet
from protocol.types import Coldkey, Hotkey

NETUID = 24


@dataclass(frozen=True)
class Subnet:
    """The chain's file and the wallets: the validator first, then the miners."""

    path: Path
    wallets: list[bt.Wallet]
    chain: LocalChain

    def hotkey(self, index: int) -> Hotkey:
        return Hotkey(self.wallets[index].hotkey.ss58_address)


def registration(wallet: bt.Wallet, stake_tao: float = 0.0, validator_permit: bool = False) -> Registration:
    return Registration(
        Hotkey(wallet.hotkey.ss58_address),
        Coldkey(wallet.coldkeypub.ss58_address),
        stake_tao,
        validator_permit,
    )


@pytest.fixture(scope="session")
def wallets(tmp_path_factory: pytest.TempPathFactory) -> list[bt.Wallet]:
    root = tmp_path_factory.mktemp("wallets")
    return [create_wallet(root, f"neuron{index}") for index in range(5)]


MakeSubnet = Callable[..., Subnet]


@pytest.fixture
def make_subnet(tmp_path: Path, wallets: list[bt.Wallet]) -> Iterator[MakeSubnet]:
    """Builds a chain whose blocks hardly move by themselves; tests call `advance`."""
    made: list[LocalChain] = []

    def make(*, block_time_s: float = 3600.0, **options: object) -> Subnet:
        chain = LocalChain.create(
            tmp_path / f"chain{len(made)}.sqlite",
            block_time_s=block_time_s,
            netuid=NETUID,
            neurons=[
                registration(wallets[0], 2000.0, validator_permit=True),
                *(registration(wallet) for wallet in wallets[1:4]),
            ],
            **{"owner_hotkey": None, "weights_rate_limit": 10, **options},  # type: ignore[arg-type]
        )
        made.append(chain)
        return Subnet(chain.path, wallets, chain)

    yield make
    for chain in made:
        chain.close()


@pytest.fixture
def subnet(make_subnet: MakeSubnet) -> Subnet:
    return make_subnet()


@pytest.fixture(autouse=True)
def private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the SDK caches stays in the test's folder."""
    monkeypatch.setenv("BTCLI_TOKEN_SYMBOLS_CACHE", str(tmp_path / "symbols.json"))
    monkeypatch.setenv("BITTENSOR_RUNTIME_CACHE_DIR", str(tmp_path / "runtime"))
