"""What a subtensor node answers, over the embedded local chain: blocks, state, extrinsics."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from node.chain.local import LocalChain
from tests.fakes.subtensor.extrinsics import Nonces, dispatch, outcome_event, read_extrinsic
from tests.fakes.subtensor.faults import Faults, Seen
from tests.fakes.subtensor.runtime import Runtime, compact

INTERNAL_ERROR = -32603
HEAD_POLL_S = 0.02

Answer = Any


class RpcError(Exception):
    """Answered to the client as a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message} | ({"data": data} if data else {})


class AnswerLost(Exception):
    """The connection goes away instead of an answer."""


class ChainRpc:
    """State is the local chain's file; block bodies, with the outcome of extrinsics, are kept in memory."""

    def __init__(
        self, chain: LocalChain, fixture: Path, faults: Faults, seen: Seen, *, has_consensus: bool
    ) -> None:
        self.chain = chain
        self._faults = faults
        self._seen = seen
        self._fixture = fixture
        self._parameters = chain.state().parameters
        self.use_runtime(has_consensus=has_consensus)
        self._nonces = Nonces(chain.path.with_name(chain.path.name + ".nonces"))
        self._bodies: dict[int, list[bytes]] = {}
        self._events: dict[int, list[bytes]] = {}

    def use_runtime(self, *, has_consensus: bool) -> None:
        """Take another runtime, as after an upgrade of the chain."""
        self._runtime = Runtime(
            self._fixture, block_time_s=self._parameters.block_time_s, has_consensus=has_consensus
        )
        # The SDK caches metadata by the genesis hash.
        self._genesis = "0x" + self._runtime.fingerprint * 2 + self._parameters.block_hash(0)[34:]

    def runtime_version(self, block_hash: str | None = None) -> Answer:
        """The same at every block."""
        del block_hash
        return self._runtime.version

    # Blocks -------------------------------------------------------------------------------------

    def head(self) -> int:
        """Height that this node shows as the head."""
        return max(1, self.chain.height() - self._faults.stale_blocks)

    def hash(self, height: int | None = None) -> str | None:
        """Hash of a block, of the head by default."""
        if height == 0:
            return self._genesis
        return self.chain.block_hash(self.head() if height is None else height)

    def height(self, block_hash: str | None) -> int | None:
        """Height of a block, of the head by default; None when there is no such block."""
        if block_hash is None:
            return self.head()
        return 0 if block_hash == self._genesis else self.chain.find_block(block_hash)

    def header(self, block_hash: str | None = None) -> Answer:
        """A block's header; None when there is no such block."""
        height = self.height(block_hash)
        if height is None:
            return None
        zero = "0x" + "00" * 32
        return {
            "number": hex(height),
            "parentHash": self.hash(height - 1) if height else zero,
            "stateRoot": zero,
            "extrinsicsRoot": zero,
            "digest": {"logs": []},
        }

    def block(self, block_hash: str | None = None) -> Answer:
        """A block with its extrinsics."""
        height = self.height(block_hash)
        if height is None:
            return None
        extrinsics = ["0x" + data.hex() for data in self._bodies.get(height, [])]
        return {
            "block": {"header": self.header(block_hash), "extrinsics": extrinsics},
            "justifications": None,
        }

    async def heads(self) -> AsyncIterator[Any]:
        """Headers as the head moves."""
        seen = None
        while True:
            head = self.head()
            if head != seen and not self._faults.is_silent:
                seen = head
                yield self.header(self.hash(head))
            await asyncio.sleep(HEAD_POLL_S)

    # State --------------------------------------------------------------------------------------

    def storage(self, key_hex: str, block_hash: str | None = None) -> str | None:
        """One storage value; state exists at the head only, events at every block."""
        key = bytes.fromhex(key_hex[2:])
        if key == self._runtime.events_key:
            records = self._events.get(self.height(block_hash) or 0, [])
            return "0x" + (compact(len(records)) + b"".join(records)).hex()
        value = self._runtime.storage(self.chain.state(), key)
        return None if value is None else "0x" + value.hex()

    def storage_of_many(self, keys: list[str], block_hash: str | None = None) -> Answer:
        """Several storage values."""
        changes = [[key, self.storage(key, block_hash)] for key in keys]
        return [{"block": block_hash, "changes": changes}]

    def keys(self, prefix_hex: str, count: int, start_hex: str, block_hash: str | None = None) -> list[str]:
        """A page of a storage map's keys."""
        del block_hash
        keys = self._runtime.keys(self.chain.state(), bytes.fromhex(prefix_hex[2:]))
        start = bytes.fromhex(start_hex[2:])
        return ["0x" + key.hex() for key in keys if key > start][:count]

    def call(self, method: str, data_hex: str, block_hash: str | None = None) -> str:
        """A call of a runtime API."""
        del block_hash
        if method == "Metadata_metadata_at_version":
            return self._runtime.metadata_answer
        if method == "TransactionPaymentApi_query_info":
            return "0x" + self._runtime.no_fee.hex()
        result = self._runtime.call(self.chain.state(), method, bytes.fromhex(data_hex.removeprefix("0x")))
        if result is None:
            raise RpcError(INTERNAL_ERROR, f"Exported method {method} is not found")
        return "0x" + result.hex()

    # Extrinsics ---------------------------------------------------------------------------------

    def next_index(self, account: str) -> int:
        """The nonce that an account should use next."""
        return self._nonces.next(account) + self._faults.nonce_offset

    def submit(self, data_hex: str) -> tuple[str, str]:
        """Check an extrinsic and put it into the head's block; its hash and the block's."""
        data = bytes.fromhex(data_hex[2:])
        extrinsic = read_extrinsic(self._runtime, self.chain, self._genesis, data)
        self._nonces.use(extrinsic.signer, extrinsic.nonce)
        error = self._faults.reject_dispatch
        if self._faults.swallow:
            self._faults.swallow -= 1
        elif error is None:
            error = dispatch(self.chain, extrinsic)
            self._seen.extrinsics.append(f"{extrinsic.module}.{extrinsic.function}")
        height = self.chain.height()
        body = self._bodies.setdefault(height, [])
        pallet = "SubtensorModule" if self._faults.reject_dispatch else extrinsic.module
        self._events.setdefault(height, []).append(outcome_event(self._runtime, len(body), pallet, error))
        body.append(data)
        if self._faults.lose_answers:
            self._faults.lose_answers -= 1
            raise AnswerLost
        included = self.chain.block_hash(height)
        assert included is not None
        return extrinsic.hash, included

    def submit_unwatched(self, data_hex: str) -> str:
        """Take an extrinsic; its hash."""
        return self.submit(data_hex)[0]

    def watch(self, data_hex: str) -> AsyncIterator[Any]:
        """Take an extrinsic and tell how it fares."""
        _, included = self.submit(data_hex)

        async def statuses() -> AsyncIterator[Any]:
            yield "ready"
            yield {"inBlock": included}
            yield {"finalized": included}

        return statuses()


METHODS: dict[str, Callable[..., Answer]] = {
    "chain_getHead": ChainRpc.hash,
    "chain_getFinalizedHead": ChainRpc.hash,
    "chain_getBlockHash": ChainRpc.hash,
    "chain_getHeader": ChainRpc.header,
    "chain_getBlock": ChainRpc.block,
    "state_getStorageAt": ChainRpc.storage,
    "state_getStorage": ChainRpc.storage,
    "state_queryStorageAt": ChainRpc.storage_of_many,
    "state_getKeysPaged": ChainRpc.keys,
    "state_getRuntimeVersion": ChainRpc.runtime_version,
    "state_call": ChainRpc.call,
    "account_nextIndex": ChainRpc.next_index,
    "author_submitExtrinsic": ChainRpc.submit_unwatched,
}
SUBSCRIPTIONS: dict[str, Callable[..., AsyncIterator[Any]]] = {
    "author_submitAndWatchExtrinsic": ChainRpc.watch,
    "chain_subscribeNewHeads": ChainRpc.heads,
    "chain_subscribeFinalizedHeads": ChainRpc.heads,
}
SUBMISSIONS = ("author_submitExtrinsic", "author_submitAndWatchExtrinsic")
