"""What the embedded local chain holds, as plain values."""

import hashlib
from dataclasses import dataclass
from typing import Any

from node.chain.interface import AxonAddress
from protocol.errors import ChainRejected
from protocol.types import BlockHeight, Coldkey, Hotkey, Uid

RAO_PER_TAO = 10**9
U16_MAX = 65_535
FIRST_HEIGHT = 1
"""Height at genesis; 0 stands for 'never' in `last_update`."""
HEIGHT_DIGITS = 16
"""Hex digits at the end of a block's hash that hold its height, so that a hash leads back to its block."""


class ExtrinsicRefused(ChainRejected):
    """The local chain refused an extrinsic; `name` is the real chain's name of the error."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@dataclass(frozen=True, slots=True)
class Registration:
    """A neuron to be registered."""

    hotkey: Hotkey
    coldkey: Coldkey
    stake_tao: float = 0.0
    validator_permit: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalParameters:
    """Everything that a local chain is set up with, in the chain's own units."""

    chain_id: str
    genesis_unix_s: float
    block_time_s: float
    offset_blocks: int
    netuid: int
    owner_hotkey: Hotkey | None
    tempo: int
    weights_rate_limit: int
    min_allowed_weights: int
    max_weight_u16: int
    min_stake_rao: int
    version_key: int
    commit_reveal: int
    """1: weights are committed encrypted and shown epochs later."""
    reveal_period_epochs: int

    def epoch(self, height: int) -> int:
        """Number of the epoch that a block belongs to."""
        return height // (self.tempo + 1)

    def block_hash(self, height: int) -> str:
        """Hash of a block, 0x-hex of 32 bytes: the same for ever, different on every chain."""
        digest = hashlib.sha256(f"{self.chain_id}:{height}".encode()).hexdigest()
        return f"0x{digest[:-HEIGHT_DIGITS]}{height:0{HEIGHT_DIGITS}x}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNeuron:
    """A registered neuron as the local chain stores it."""

    uid: Uid
    hotkey: Hotkey
    coldkey: Coldkey
    stake_rao: int
    validator_permit: bool
    registered_at: BlockHeight
    last_update: BlockHeight
    axon: AxonAddress | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalState:
    """The whole chain at one moment; `weights` by UID, `weight_commits` by UID as (height, drand round),
    `commitments` by hotkey as (height, fields)."""

    height: BlockHeight
    parameters: LocalParameters
    neurons: tuple[LocalNeuron, ...]
    weights: dict[int, list[tuple[int, int]]]
    weight_commits: dict[int, list[tuple[int, int]]]
    commitments: dict[str, tuple[int, list[Any]]]

    def neuron(self, hotkey: str) -> LocalNeuron | None:
        """The neuron registered under a hotkey."""
        return next((neuron for neuron in self.neurons if neuron.hotkey == hotkey), None)
