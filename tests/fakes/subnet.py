"""A subnet on an embedded chain file: one validator, three miners and one stranger, wallets on disk."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.chain import LocalChain, Registration
from protocol.types import Coldkey, Hotkey

NETUID = 24


@dataclass(frozen=True)
class Subnet:
    """The chain and the wallets: 0 is the validator, 1 to 3 are miners, 4 is not registered."""

    path: Path
    wallets: list[Any]
    chain: LocalChain

    def hotkey(self, index: int) -> Hotkey:
        """Address of a wallet's hotkey."""
        return Hotkey(self.wallets[index].hotkey.ss58_address)


MakeSubnet = Callable[..., Subnet]


def registration(wallet: Any, stake_tao: float = 0.0, validator_permit: bool = False) -> Registration:
    """A wallet's registration."""
    return Registration(
        Hotkey(wallet.hotkey.ss58_address),
        Coldkey(wallet.coldkeypub.ss58_address),
        stake_tao,
        validator_permit,
    )
