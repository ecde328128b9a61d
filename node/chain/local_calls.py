"""Extrinsics of the embedded local chain, by pallet and function."""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any

from node.chain.local import ExtrinsicRefused, LocalChain

Apply = Callable[[LocalChain, str, Mapping[str, Any]], object]
"""Carries out a call in the name of the hotkey that signed it; raises ExtrinsicRefused."""


def _check_netuid(chain: LocalChain, params: Mapping[str, Any]) -> None:
    own = chain.state().parameters.netuid
    if int(params["netuid"]) != own:
        raise ExtrinsicRefused(
            "SubnetNotExists", f"subnet {params['netuid']} does not exist: the local chain has {own} only"
        )


def _check_mechanism(params: Mapping[str, Any]) -> None:
    if int(params.get("mecid", 0)) != 0:
        raise ExtrinsicRefused("MechanismDoesNotExist", f"mechanism {params['mecid']} does not exist")


def _set_weights(chain: LocalChain, hotkey: str, params: Mapping[str, Any]) -> None:
    _check_netuid(chain, params)
    _check_mechanism(params)
    chain.set_weights(
        hotkey,
        [int(uid) for uid in params["dests"]],
        [int(value) for value in params["weights"]],
        version_key=int(params["version_key"]),
    )


def _commit_weights(chain: LocalChain, hotkey: str, params: Mapping[str, Any]) -> None:
    _check_netuid(chain, params)
    _check_mechanism(params)
    chain.commit_weights(hotkey, _bytes(params["commit"]), int(params["reveal_round"]))


def _bytes(value: Any) -> bytes:
    """A byte string as it is, or as the hex text that decoding a call gives."""
    return bytes.fromhex(value.removeprefix("0x")) if isinstance(value, str) else bytes(value)


def _serve_axon(chain: LocalChain, hotkey: str, params: Mapping[str, Any]) -> None:
    _check_netuid(chain, params)
    kinds = {4: ipaddress.IPv4Address, 6: ipaddress.IPv6Address}
    kind = kinds.get(int(params["ip_type"]))
    if kind is None:
        raise ExtrinsicRefused("InvalidIpType", f"IP type {params['ip_type']} is neither 4 nor 6")
    try:
        address = kind(int(params["ip"]))
    except ipaddress.AddressValueError as error:
        raise ExtrinsicRefused("InvalidIpAddress", f"{params['ip']} is not an IP address") from error
    chain.serve_axon(hotkey, str(address), int(params["port"]))


def _set_commitment(chain: LocalChain, hotkey: str, params: Mapping[str, Any]) -> None:
    _check_netuid(chain, params)
    chain.set_commitment(hotkey, params["info"]["fields"])


CALLS: Mapping[tuple[str, str], Apply] = {
    ("SubtensorModule", "set_weights"): _set_weights,
    ("SubtensorModule", "set_mechanism_weights"): _set_weights,
    ("SubtensorModule", "commit_timelocked_mechanism_weights"): _commit_weights,
    ("SubtensorModule", "serve_axon"): _serve_axon,
    ("Commitments", "set_commitment"): _set_commitment,
}
