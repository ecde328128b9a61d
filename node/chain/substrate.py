"""The SDK's `Substrate` protocol over the embedded local chain, so that `bittensor.Client` runs unmodified.

State exists at the head only: a read pinned to an older block sees the head. Calls that the local chain
has no use for (multisig, offline signing, shielded submission) fail as on a chain without that pallet.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn, TypeVar

import bittensor as bt

from node.chain.local import ExtrinsicRefused, LocalChain, LocalState
from node.chain.local_calls import CALLS
from node.chain.local_views import CONSTANTS, MAPS, RUNTIME_CALLS, STORAGE
from protocol.errors import ChainUnavailable

SPEC_VERSION = 1

T = TypeVar("T")


@dataclass(frozen=True)
class LocalCall:
    """A composed call: what a real chain would carry as SCALE bytes, `data` being its JSON."""

    module: str
    function: str
    params: dict[str, Any]
    spec_version: int = SPEC_VERSION

    @cached_property
    def data(self) -> bytes:
        """Deterministic bytes of the call."""
        return json.dumps([self.module, self.function, self.params], sort_keys=True, default=str).encode()

    @cached_property
    def call_hash(self) -> bytes:
        """blake2b-256 of `data`."""
        return hashlib.blake2b(self.data, digest_size=32).digest()


class LocalSubstrate:
    """Chain access for `bittensor.Client("local", substrate=...)`; always pass `network="local"`.

    Raises bittensor.RpcConnectionError when the chain's file is missing or locked, ValueError for a
    storage item that the local chain does not have, as the SDK's own transport does.
    """

    def __init__(self, chain: LocalChain) -> None:
        self.chain = chain
        self.token_symbols: dict[int, str] = {}
        # One thread, which ends with this object: the chain answers one caller at a time, and every thread
        # that has read a large subnet keeps a heap of that size.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-chain")

    def balance(self, rao: int, netuid: int = 0) -> Any:
        """A balance tagged with this chain's token symbol."""
        return bt.Balance(int(rao), netuid, self.token_symbols.get(netuid) if netuid else None)

    async def connect(self) -> None:
        """Check that the chain is there."""
        await self._run(self.chain.height)

    async def close(self) -> None:
        """Release the chain's file."""
        await self._run(self.chain.close)

    # Blocks -------------------------------------------------------------------------------------

    async def block_hash(self, block: int | None = None) -> str:
        """Hash of a block (default: the head); ChainError for a block that does not exist yet."""
        height = await self.block_number() if block is None else block
        found = await self._run(lambda: self.chain.block_hash(height))
        if found is None:
            raise bt.ChainError(f"no block at height {height}")
        return found

    async def block_number(self) -> int:
        """Height of the head."""
        return await self._run(self.chain.height)

    async def finalized_block_number(self) -> int:
        """The head: every block is final."""
        return await self.block_number()

    async def block_time(self) -> float:
        """Seconds per block."""
        return (await self._state()).parameters.block_time_s

    async def spec_version(self) -> int:
        """Version of this state machine."""
        return SPEC_VERSION

    async def get_block(
        self, block_number: int | None = None, block_hash: str | None = None
    ) -> dict[str, Any] | None:
        """A block's header; bodies are not kept."""
        del block_hash
        return {"header": await self._header(block_number), "extrinsics": []}

    async def blocks(self, *, finalized: bool = False) -> AsyncIterator[dict[str, Any]]:
        """Headers as blocks come, each exactly once (as with a subscription)."""
        del finalized
        seen = await self.block_number() - 1
        pause_s = min(await self.block_time() / 2, 1.0)
        while True:
            head = await self.block_number()
            for height in range(seen + 1, head + 1):
                yield {"header": await self._header(height)}
            seen = max(seen, head)
            await asyncio.sleep(pause_s)

    async def events(self, block_hash: str | None = None) -> list[dict[str, Any]]:
        """Always empty: events are not kept."""
        del block_hash
        return []

    # State --------------------------------------------------------------------------------------

    async def query(
        self,
        module: str,
        storage_function: str,
        params: list[Any] | None = None,
        block_hash: str | None = None,
    ) -> Any:
        """One storage item."""
        del block_hash
        view = STORAGE.get((module, storage_function))
        if view is None:
            raise ValueError(f"the local chain has no storage item {module}.{storage_function}")
        return view(await self._state(), *(params or []))

    async def query_map(
        self,
        module: str,
        storage_function: str,
        params: list[Any] | None = None,
        block_hash: str | None = None,
    ) -> list[tuple[Any, Any]]:
        """A storage map as (key, value) pairs."""
        del block_hash
        view = MAPS.get((module, storage_function))
        if view is None:
            raise ValueError(f"the local chain has no storage map {module}.{storage_function}")
        return view(await self._state(), *(params or []))

    async def map_has_entries(
        self, module: str, storage_function: str, params: list[Any], block_hash: str | None = None
    ) -> bool:
        """Whether a storage map holds anything under a prefix."""
        return bool(await self.query_map(module, storage_function, params, block_hash))

    async def query_batch(
        self,
        module: str,
        storage_function: str,
        param_sets: list[list[Any]],
        block_hash: str | None = None,
    ) -> list[Any]:
        """One storage item for many keys, in their order."""
        return [await self.query(module, storage_function, params, block_hash) for params in param_sets]

    async def runtime_call(
        self, api: str, method: str, params: list[Any], block_hash: str | None = None
    ) -> Any:
        """A runtime API call."""
        del block_hash
        view = RUNTIME_CALLS.get((api, method))
        if view is None:
            raise ValueError(f"the local chain has no runtime API {api}.{method}")
        return view(await self._state(), *params)

    async def constant(self, module: str, name: str) -> Any:
        """A pallet constant."""
        view = CONSTANTS.get((module, name))
        if view is None:
            raise ValueError(f"the local chain has no constant {module}.{name}")
        return view(await self._state())

    async def decode_scale(self, type_string: str, data: Any) -> Any:
        """Refused: nothing here is SCALE-encoded."""
        del data
        _unsupported(f"decoding SCALE type {type_string}")

    # Calls --------------------------------------------------------------------------------------

    async def compose(self, call: Any) -> LocalCall:
        """A chain-ready call from a generated (module, function, params)."""
        module, function, params = call
        return LocalCall(module, function, dict(params))

    async def estimate_fee(self, call: Any, keypair: Any) -> Any:
        """Zero: extrinsics are free here."""
        del call, keypair
        return self.balance(0)

    async def estimate_weight(self, call: Any, keypair: Any) -> dict[str, int]:
        """Zero: blocks have no weight limit here."""
        del call, keypair
        return {"ref_time": 0, "proof_size": 0}

    async def account_next_index(self, address: str) -> int:
        """Zero: nonces are not checked."""
        del address
        return 0

    async def submit(
        self,
        call: Any,
        keypair: Any,
        *,
        nonce: int | None = None,
        period: int | None = None,
        wait_for_inclusion: bool = True,
        wait_for_finalization: bool = True,
    ) -> Any:
        """Apply a composed call in the name of `keypair` and return the SDK's ExtrinsicResult."""
        del nonce, period, wait_for_inclusion, wait_for_finalization
        apply = CALLS.get((call.module, call.function))
        if apply is None:
            return _failed(f"the local chain has no call {call.module}.{call.function}", None)
        try:
            await self._run(lambda: apply(self.chain, keypair.ss58_address, call.params))
        except ExtrinsicRefused as error:
            return _failed(str(error), error.name)
        height = await self.block_number()
        return bt.ExtrinsicResult(
            success=True,
            message="Success",
            block_hash=await self.block_hash(height),
            extrinsic_id=f"{height}-0001",
            fee=self.balance(0),
        )

    async def mev_next_key(self) -> bytes | None:
        """None: there is no MEV shield."""
        return None

    async def sign_extrinsic(self, call: Any, keypair: Any, *, nonce: int, period: int) -> tuple[bytes, str]:
        """Refused."""
        del call, keypair, nonce, period
        _unsupported("signing without submitting")

    async def find_extrinsic(self, extrinsic_hash: str, block_hash: str) -> None:
        """None: block bodies are not kept."""
        del extrinsic_hash, block_hash

    async def prepare(self, call: Any, **options: Any) -> NoReturn:
        """Refused."""
        del call, options
        _unsupported("offline signing")

    async def submit_signature(self, unsigned: Any, signature: Any, **options: Any) -> NoReturn:
        """Refused."""
        del unsigned, signature, options
        _unsupported("offline signing")

    async def submit_signed(self, extrinsic: Any, keypair: Any, **options: Any) -> NoReturn:
        """Refused."""
        del extrinsic, keypair, options
        _unsupported("offline signing")

    def multisig_account(self, signatories: list[str], threshold: int) -> NoReturn:
        """Refused."""
        del signatories, threshold
        _unsupported("multisig")

    async def submit_multisig(
        self, call: Any, keypair: Any, multisig_account: Any, **options: Any
    ) -> NoReturn:
        """Refused."""
        del call, keypair, multisig_account, options
        _unsupported("multisig")

    # --------------------------------------------------------------------------------------------

    async def _state(self) -> LocalState:
        return await self._run(self.chain.state)

    async def _run(self, act: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, act)
        except ChainUnavailable as error:
            raise bt.RpcConnectionError(str(error)) from error

    async def _header(self, block: int | None) -> dict[str, Any]:
        height = await self.block_number() if block is None else block
        parent = await self.block_hash(height - 1) if height > 0 else None
        return {"number": height, "hash": await self.block_hash(height), "parentHash": parent}


def _failed(message: str, name: str | None) -> Any:
    return bt.ExtrinsicResult(success=False, message=message, error=bt.ChainError(message, name))


def _unsupported(what: str) -> NoReturn:
    raise bt.ChainError(f"the local chain does not know {what}")
