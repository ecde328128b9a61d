"""What the node asks of a chain, in the node's own types."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from protocol.types import BlockCount, BlockHeight, Coldkey, Hotkey, Uid


@dataclass(frozen=True, slots=True)
class AxonAddress:
    """Where a neuron says that it can be reached."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"[{self.ip}]:{self.port}" if ":" in self.ip else f"{self.ip}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Neuron:
    """One registered hotkey; `last_update` is the height at which it last set weights (0: never)."""

    hotkey: Hotkey
    coldkey: Coldkey
    uid: Uid
    stake_tao: float
    validator_permit: bool
    axon: AxonAddress | None
    last_update: BlockHeight


@dataclass(frozen=True, slots=True, kw_only=True)
class Metagraph:
    """Every registered neuron at one height, by hotkey (UIDs are recycled, hotkeys are not)."""

    height: BlockHeight
    neurons: Mapping[Hotkey, Neuron]
    owner_hotkey: Hotkey | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OnChainCommitment:
    """What a hotkey's one slot on the chain holds, and the height at which it was put there."""

    height: BlockHeight
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRules:
    """What the subnet demands of weights; `max_weight` is the largest share of one miner (0..1)."""

    rate_limit_blocks: BlockCount
    min_allowed: int
    max_weight: float
    tempo: BlockCount
    commit_reveal: bool
    min_stake_tao: float = 0.0
    version_key: int = 0
    owner_hotkey: Hotkey | None = None


class HotkeyHolder(Protocol):
    """A wallet as far as the chain is concerned: `bittensor.Wallet` or anything with a hotkey."""

    @property
    def hotkey(self) -> Any:
        """Keypair that signs: `.ss58_address`, `.public_key`, `.crypto_type`, `.sign`."""


class Chain(Protocol):
    """A subnet's chain; every method ends within its deadline.

    Raises ChainUnavailable when the chain did not answer, ChainRejected when it refused,
    NotPermitted when the hotkey is not registered or lacks the permit or the stake.
    """

    async def height(self) -> BlockHeight:
        """The head's block number."""

    async def block_time_s(self) -> float:
        """Seconds per block as the chain states them (12 on mainnet; never assume)."""

    async def block_hash(self, height: BlockHeight) -> str:
        """Hash of an existing block, 0x-hex; ChainRejected for a height not reached yet."""

    async def metagraph(self) -> Metagraph:
        """The subnet's neurons, all read at one height."""

    async def weight_rules(self) -> WeightRules:
        """The subnet's rules for weights, from chain storage."""

    async def set_weights(self, wallet: HotkeyHolder, weights: Mapping[Hotkey, float]) -> None:
        """Set the wallet's weights and return once `last_update` on chain confirms them.

        Hotkeys are resolved to UIDs at the moment of use; weights are relative.
        """

    async def weights_of(self, hotkey: Hotkey) -> dict[Hotkey, float]:
        """Weights that a hotkey has set, from chain storage, summing to 1 (empty: none)."""

    async def serve_axon(self, wallet: HotkeyHolder, ip: str, port: int) -> None:
        """Publish the wallet's address; nothing is sent when the chain already has it."""

    async def commitment(self, hotkey: Hotkey) -> OnChainCommitment | None:
        """What the hotkey has committed on chain, None when it has nothing there."""

    async def commit(self, wallet: HotkeyHolder, data: bytes) -> OnChainCommitment:
        """Put `data` (at most 128 bytes) into the hotkey's slot and return it as the chain shows it.

        Nothing is sent when the slot holds it already; what it held before is replaced.
        """

    def reconnect(self) -> None:
        """Give the connection up: the next call opens another, at the next endpoint where there are several.

        For an endpoint that answers and yet does not follow the chain any more.
        """

    async def close(self) -> None:
        """Release the connection; the chain cannot be used afterwards."""
