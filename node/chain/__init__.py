"""The chain: one interface over public Bittensor networks and the embedded local chain."""

from node.chain.interface import (
    AxonAddress,
    Chain,
    HotkeyHolder,
    Metagraph,
    Neuron,
    OnChainCommitment,
    WeightRules,
)
from node.chain.local import LocalChain, Registration
from node.chain.opening import SDK_FOLDER, open_chain

__all__ = [
    "SDK_FOLDER",
    "AxonAddress",
    "Chain",
    "HotkeyHolder",
    "LocalChain",
    "Metagraph",
    "Neuron",
    "OnChainCommitment",
    "Registration",
    "WeightRules",
    "open_chain",
]
