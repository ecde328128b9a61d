"""The embedded local chain's state in the shapes that the real chain's storage and runtime APIs have."""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

from node.chain.local_state import FIRST_HEIGHT, LocalNeuron, LocalState

SYMBOL = "Q"
ZERO_ADDRESS = "5C4hrfjw9DjXZTzV3MwzrrAr9P1MJhSrvWGWqi1eSuyUpnhM"
"""SS58 of 32 zero bytes: what storage holds where no account was named."""

View = Callable[..., Any]
MapView = Callable[..., list[tuple[Any, Any]]]


def _own(state: LocalState, netuid: int) -> bool:
    return int(netuid) == state.parameters.netuid


# UIDs are dense (neurons are only appended or replaced), so that a UID is an index into `neurons`.


def _parameter(name: str, absent: Any) -> View:
    def view(state: LocalState, netuid: int) -> Any:
        return getattr(state.parameters, name) if _own(state, netuid) else absent

    return view


def _column(name: str) -> View:
    def view(state: LocalState, netuid: int) -> list[Any]:
        return [getattr(neuron, name) for neuron in state.neurons] if _own(state, netuid) else []

    return view


def _uid(state: LocalState, netuid: int, hotkey: str) -> int | None:
    neuron = state.neuron(hotkey) if _own(state, netuid) else None
    return None if neuron is None else int(neuron.uid)


def _hotkey(state: LocalState, netuid: int, uid: int) -> str | None:
    known = _own(state, netuid) and 0 <= int(uid) < len(state.neurons)
    return state.neurons[int(uid)].hotkey if known else None


def _owner(state: LocalState, hotkey: str) -> str | None:
    neuron = state.neuron(hotkey)
    return None if neuron is None else neuron.coldkey


def _subnet_owner(state: LocalState, netuid: int) -> str:
    owner = state.parameters.owner_hotkey if _own(state, netuid) else None
    return owner or ZERO_ADDRESS


def _weights_row(state: LocalState, netuid: int, uid: int) -> list[tuple[int, int]]:
    return state.weights.get(int(uid), []) if _own(state, netuid) else []


def _weights_map(state: LocalState, netuid: int) -> list[tuple[int, list[tuple[int, int]]]]:
    return list(state.weights.items()) if _own(state, netuid) else []


def _axon(state: LocalState, netuid: int, hotkey: str) -> dict[str, Any] | None:
    neuron = state.neuron(hotkey) if _own(state, netuid) else None
    return None if neuron is None or neuron.axon is None else _axon_info(neuron)


def _axon_info(neuron: LocalNeuron) -> dict[str, Any]:
    if neuron.axon is None:
        return {"block": 0, "version": 0, "ip": 0, "port": 0, "ip_type": 4, "protocol": 0}
    address = ipaddress.ip_address(neuron.axon.ip)
    return {
        "block": 0,
        "version": 1,
        "ip": int(address),
        "port": neuron.axon.port,
        "ip_type": address.version,
        "protocol": 4,
    }


def _commitment(state: LocalState, netuid: int, hotkey: str) -> dict[str, Any] | None:
    found = state.commitments.get(hotkey) if _own(state, netuid) else None
    return None if found is None else _commitment_record(*found)


def _commitment_record(block: int, fields: list[Any]) -> dict[str, Any]:
    # A call nests its fields one level deeper than storage gives them back.
    flat = [item for field in fields for item in (field if isinstance(field, list) else [field])]
    return {"block": block, "deposit": 0, "info": {"fields": flat}}


def _commitments(state: LocalState, netuid: int) -> list[tuple[str, dict[str, Any]]]:
    if not _own(state, netuid):
        return []
    return [(hotkey, _commitment_record(*found)) for hotkey, found in state.commitments.items()]


def _uids(state: LocalState, netuid: int) -> list[tuple[str, int]]:
    return [(neuron.hotkey, int(neuron.uid)) for neuron in state.neurons] if _own(state, netuid) else []


def _epoch_start(state: LocalState, netuid: int) -> int:
    return state.height - _since_epoch(state) if _own(state, netuid) else 0


def _epoch(state: LocalState, netuid: int) -> int:
    return state.parameters.epoch(state.height) if _own(state, netuid) else 0


def _blocks_since_epoch(state: LocalState, netuid: int) -> int:
    return _since_epoch(state) if _own(state, netuid) else 0


def _since_epoch(state: LocalState) -> int:
    return state.height % (state.parameters.tempo + 1)


def _now_ms(state: LocalState) -> int:
    parameters = state.parameters
    blocks = state.height - FIRST_HEIGHT - parameters.offset_blocks
    return round((parameters.genesis_unix_s + blocks * parameters.block_time_s) * 1000)


def _metagraph(state: LocalState, netuid: int) -> dict[str, Any] | None:
    if not _own(state, netuid):
        return None
    parameters = state.parameters
    neurons = state.neurons
    stakes = [neuron.stake_rao for neuron in neurons]
    zeros = [0 for _ in neurons]
    return {
        "netuid": parameters.netuid,
        "name": "quasar local",
        "symbol": SYMBOL,
        "block": state.height,
        "tempo": parameters.tempo,
        "last_step": state.height - _since_epoch(state),
        "blocks_since_last_step": _since_epoch(state),
        "owner_hotkey": _subnet_owner(state, netuid),
        "owner_coldkey": _owner(state, parameters.owner_hotkey or "") or ZERO_ADDRESS,
        "network_registered_at": 0,
        "num_uids": len(neurons),
        "max_uids": 256,
        "identity": None,
        "hotkeys": [neuron.hotkey for neuron in neurons],
        "coldkeys": [neuron.coldkey for neuron in neurons],
        "identities": [None for _ in neurons],
        "axons": [_axon_info(neuron) for neuron in neurons],
        "active": [True for _ in neurons],
        "validator_permit": [neuron.validator_permit for neuron in neurons],
        "last_update": [int(neuron.last_update) for neuron in neurons],
        "block_at_registration": [int(neuron.registered_at) for neuron in neurons],
        **dict.fromkeys(
            ("rank", "trust", "consensus", "incentives", "dividends", "pruning_score", "emission"), zeros
        ),
        "alpha_stake": zeros,
        "tao_stake": stakes,
        "total_stake": stakes,
    }


def _neurons(state: LocalState, netuid: int) -> list[dict[str, Any]]:
    if not _own(state, netuid):
        return []
    return [
        {
            "uid": int(neuron.uid),
            "netuid": state.parameters.netuid,
            "hotkey": neuron.hotkey,
            "coldkey": neuron.coldkey,
            "active": True,
            "axon_info": _axon_info(neuron),
            "stake": [(neuron.coldkey, neuron.stake_rao)],
            "validator_permit": neuron.validator_permit,
            "last_update": int(neuron.last_update),
            "weights": state.weights.get(int(neuron.uid), []),
        }
        for neuron in state.neurons
    ]


def _commits(state: LocalState, netuid: int) -> bool:
    return _own(state, netuid) and bool(state.parameters.commit_reveal)


def _yuma(_state: LocalState, *_params: Any) -> str:
    return "Yuma"


def _nothing(_state: LocalState, *_params: Any) -> list[Any]:
    return []


STORAGE: Mapping[tuple[str, str], View] = {
    ("SubtensorModule", "Uids"): _uid,
    ("SubtensorModule", "Keys"): _hotkey,
    ("SubtensorModule", "Owner"): _owner,
    ("SubtensorModule", "Axons"): _axon,
    ("SubtensorModule", "Weights"): _weights_row,
    ("SubtensorModule", "LastUpdate"): _column("last_update"),
    ("SubtensorModule", "ValidatorPermit"): _column("validator_permit"),
    ("SubtensorModule", "Tempo"): _parameter("tempo", 0),
    ("SubtensorModule", "WeightsSetRateLimit"): _parameter("weights_rate_limit", 0),
    ("SubtensorModule", "MinAllowedWeights"): _parameter("min_allowed_weights", 0),
    ("SubtensorModule", "MaxWeightsLimit"): _parameter("max_weight_u16", 0),
    ("SubtensorModule", "WeightsVersionKey"): _parameter("version_key", 0),
    ("SubtensorModule", "SubnetOwnerHotkey"): _subnet_owner,
    ("SubtensorModule", "SubnetworkN"): lambda state, netuid: (
        len(state.neurons) if _own(state, netuid) else 0
    ),
    ("SubtensorModule", "NetworksAdded"): _own,
    ("SubtensorModule", "StakeThreshold"): lambda state: state.parameters.min_stake_rao,
    ("SubtensorModule", "LastEpochBlock"): _epoch_start,
    ("SubtensorModule", "CommitRevealWeightsEnabled"): _commits,
    ("SubtensorModule", "RevealPeriodEpochs"): _parameter("reveal_period_epochs", 1),
    ("SubtensorModule", "SubnetEpochIndex"): _epoch,
    ("SubtensorModule", "BlocksSinceLastStep"): _blocks_since_epoch,
    ("SubtensorModule", "PendingEpochAt"): lambda _state, _netuid: 0,
    ("SubtensorModule", "SubnetEpochConsensus"): _yuma,
    ("Commitments", "CommitmentOf"): _commitment,
    ("Commitments", "RevealedCommitments"): _nothing,
    ("Timestamp", "Now"): _now_ms,
}

MAPS: Mapping[tuple[str, str], MapView] = {
    ("SubtensorModule", "TokenSymbol"): lambda state: [(state.parameters.netuid, list(SYMBOL.encode()))],
    ("SubtensorModule", "NetworksAdded"): lambda state: [(state.parameters.netuid, True)],
    ("SubtensorModule", "Uids"): _uids,
    ("SubtensorModule", "Weights"): _weights_map,
    ("Commitments", "CommitmentOf"): _commitments,
    ("Commitments", "RevealedCommitments"): _nothing,
}

RUNTIME_CALLS: Mapping[tuple[str, str], View] = {
    ("SubnetInfoRuntimeApi", "get_metagraph"): _metagraph,
    ("NeuronInfoRuntimeApi", "get_neurons"): _neurons,
    ("NeuronInfoRuntimeApi", "get_neurons_lite"): _neurons,
}

CONSTANTS: Mapping[tuple[str, str], View] = {
    ("Aura", "SlotDuration"): lambda state: round(state.parameters.block_time_s * 1000),
}
