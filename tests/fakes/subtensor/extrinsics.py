"""Signed extrinsics: checked as the transaction pool checks them, carried out, and told as events."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bittensor as bt

from node.chain.local import ExtrinsicRefused, LocalChain
from node.chain.local_calls import CALLS
from tests.fakes.subtensor.runtime import Runtime, compact

SIGNED_V4 = 0x84
ACCOUNT_ID = 0x00
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
MODULE_ERROR = 3
DISPATCH_INFO = compact(0) + compact(0) + b"\x00\x00"
"""No weight, class Normal, fee paid."""
NO_TOPICS = compact(0)
UNNAMED_ERROR = "BadOrigin"


class PoolRefused(Exception):
    """The transaction pool refused an extrinsic; `code` is the JSON-RPC error's."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.code = 1010


@dataclass(frozen=True)
class Extrinsic:
    """A signed extrinsic as it was sent."""

    data: bytes
    signer: str
    nonce: int
    module: str
    function: str
    params: dict[str, Any]

    @property
    def hash(self) -> str:
        """blake2b-256 of the bytes, 0x-hex."""
        return "0x" + hashlib.blake2b(self.data, digest_size=32).hexdigest()


class Nonces:
    """The next nonce of every account, on disk beside the chain: a restarted node has not forgotten them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._next: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}

    def next(self, account: str) -> int:
        """The nonce that the account's next extrinsic must carry."""
        return self._next.get(account, 0)

    def use(self, account: str, nonce: int) -> None:
        """Take a nonce; raises PoolRefused for any but the next one."""
        if nonce != self.next(account):
            is_old = nonce < self.next(account)
            raise PoolRefused(
                "Transaction is outdated" if is_old else "Transaction will be valid in the future"
            )
        self._next[account] = nonce + 1
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps(self._next))
        draft.replace(self._file)


def read_extrinsic(runtime: Runtime, chain: LocalChain, genesis: str, data: bytes) -> Extrinsic:
    """Decode an extrinsic and verify its signature; raises PoolRefused."""
    codec = runtime.codec
    try:
        decoded = codec.decode_extrinsic(data)
        ((scheme, signature_hex),) = decoded["signature"].items()
        period, phase = decoded["era"] if decoded["era"] != "00" else (0, 0)
    except (ValueError, KeyError, AttributeError) as error:
        raise PoolRefused(f"Extrinsic cannot be decoded: {error}") from error
    era: dict[str, int] | str = {"period": period, "phase": phase} if period else "00"
    birth = _birth(chain.height(), period, phase) if period else 0
    born = (chain.block_hash(birth) if birth else None) or genesis
    implied = {"era": era, "nonce": decoded["nonce"], "tip": decoded["tip"], "tip_asset_id": None}
    hashes = {"genesis_hash": genesis, "era_block_hash": born}
    _, extra, _ = codec.signature_payload_parts(b"", **implied, **hashes)
    call = _call_bytes(data, extra)
    payload = codec.signature_payload(call, **implied, **hashes)
    crypto_type = {"Ed25519": 0, "Sr25519": 1}[scheme]
    if not bt.sp_core.verify(payload, bytes.fromhex(signature_hex[2:]), decoded["address"], crypto_type):
        raise PoolRefused("Transaction has a bad signature")
    arguments = {argument["name"]: argument["value"] for argument in decoded["call"]["call_args"]}
    return Extrinsic(
        data=data,
        signer=decoded["address"],
        nonce=decoded["nonce"],
        module=decoded["call"]["call_module"],
        function=decoded["call"]["call_function"],
        params=arguments,
    )


def dispatch(chain: LocalChain, extrinsic: Extrinsic) -> str | None:
    """Carry an extrinsic out; the name of the error that it failed with, None when it did not."""
    apply = CALLS.get((extrinsic.module, extrinsic.function))
    if apply is None:
        return UNNAMED_ERROR
    try:
        apply(chain, extrinsic.signer, extrinsic.params)
    except ExtrinsicRefused as error:
        return error.name
    return None


def outcome_event(runtime: Runtime, index: int, pallet: str, error: str | None) -> bytes:
    """The event record of an extrinsic's success or failure."""
    head = b"\x00" + index.to_bytes(4, "little") + b"\x00"
    if error is None:
        return head + b"\x00" + DISPATCH_INFO + NO_TOPICS
    return head + b"\x01" + _dispatch_error(runtime, pallet, error) + DISPATCH_INFO + NO_TOPICS


def _dispatch_error(runtime: Runtime, pallet: str, name: str) -> bytes:
    for module in runtime.codec.metadata_ir().pallets:
        if module.name == pallet:
            for error in module.errors:
                if error.name == name:
                    return bytes([MODULE_ERROR, module.index, error.index, 0, 0, 0])
    return b"\x02"  # BadOrigin


def _call_bytes(data: bytes, extra: bytes) -> bytes:
    width = {0: 1, 1: 2, 2: 4}[data[0] & 3]
    body = data[width:]
    assert body[0] == SIGNED_V4
    assert body[1] == ACCOUNT_ID
    # Version, kind of address, key; kind of signature, signature.
    rest = body[2 + PUBLIC_KEY_BYTES + 1 + SIGNATURE_BYTES :]
    assert rest.startswith(extra), "the signed extensions are not what the runtime declares"
    return rest[len(extra) :]


def _birth(height: int, period: int, phase: int) -> int:
    """The block in which a mortal era began."""
    return (max(height, phase) - phase) // period * period + phase
