"""Websocket JSON-RPC as a subtensor node speaks it, over the embedded local chain."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from node.chain.local import LocalChain, LocalState
from protocol.errors import ChainUnavailable
from tests.fakes.subtensor.extrinsics import Nonces, PoolRefused, dispatch, outcome_event, read_extrinsic
from tests.fakes.subtensor.faults import Faults, Seen
from tests.fakes.subtensor.runtime import Runtime, compact

SET_FAULTS = "fake_faults"
METHOD_NOT_FOUND = -32601
INTERNAL_ERROR = -32603
HEAD_POLL_S = 0.02

Answer = Any


class RpcError(Exception):
    """Answered to the client as a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: str | None = None) -> None:
        super().__init__(message)
        self.error = {"code": code, "message": message} | ({"data": data} if data else {})


class _AnswerLost(Exception):
    """The connection goes away instead of an answer."""


class SubtensorNode:
    """One node; several may stand in front of one chain. `faults` may be changed at any moment.

    State is the local chain's file; block bodies, with the outcome of extrinsics, are kept in memory.
    """

    def __init__(
        self, chain: LocalChain, fixture: Path, *, port: int = 0, has_consensus: bool = True
    ) -> None:
        self.chain = chain
        self.port = port
        self.faults = Faults()
        self.seen = Seen()
        self._fixture = fixture
        self._parameters = chain.state().parameters
        self.use_runtime(has_consensus=has_consensus)
        self._nonces = Nonces(chain.path.with_name(chain.path.name + ".nonces"))
        self._bodies: dict[int, list[bytes]] = {}
        self._events: dict[int, list[bytes]] = {}
        self._connections: set[ServerConnection] = set()
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._subscriptions = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._server: Server | None = None

    @property
    def url(self) -> str:
        """Where the node listens."""
        return f"ws://127.0.0.1:{self.port}"

    @property
    def submitted(self) -> int:
        """How many extrinsics have entered the pool."""
        return sum(self.seen.requests[method] for method in SUBMISSIONS)

    def use_runtime(self, *, has_consensus: bool) -> None:
        """Take another runtime, as after an upgrade of the chain."""
        self._runtime = Runtime(
            self._fixture, block_time_s=self._parameters.block_time_s, has_consensus=has_consensus
        )
        # The SDK caches metadata by the genesis hash.
        self._genesis = "0x" + self._runtime.fingerprint * 2 + self._parameters.block_hash(0)[34:]

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the same port as before after a stop."""
        self._server = await serve(
            self._serve, "127.0.0.1", self.port, process_request=self._admit, ping_interval=None
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Drop every connection and stop listening, as a node that is killed does."""
        if self._server is not None:
            self._server.close(close_connections=False)
            self.drop()
            await self._server.wait_closed()
            self._server = None
        streams = list(self._streams.values())
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)

    def drop(self) -> None:
        """Cut every connection without a word."""
        for connection in list(self._connections):
            connection.transport.abort()

    async def close_gracefully(self) -> None:
        """Close every connection with code 1000."""
        await asyncio.gather(*(connection.close() for connection in list(self._connections)))

    # Connections --------------------------------------------------------------------------------

    def _admit(self, connection: ServerConnection, request: Request) -> Response | None:
        del request
        if self.faults.refuse_handshake is None:
            return None
        status = HTTPStatus(self.faults.refuse_handshake)
        return connection.respond(status, f"{status.phrase}\n")

    async def _serve(self, connection: ServerConnection) -> None:
        self.seen.connections += 1
        self._connections.add(connection)
        try:
            async for text in connection:
                frame = json.loads(text)
                many = frame if isinstance(frame, list) else [frame]
                answers = [answer for request in many if (answer := await self._answer(connection, request))]
                if answers:
                    await connection.send(json.dumps(answers if isinstance(frame, list) else answers[0]))
        except _AnswerLost:
            connection.transport.abort()
        except ConnectionClosed:
            pass
        finally:
            self._connections.discard(connection)

    async def _answer(self, connection: ServerConnection, request: dict[str, Any]) -> dict[str, Any] | None:
        method, params = request["method"], request.get("params") or []
        if method == SET_FAULTS:
            return {"jsonrpc": "2.0", "id": request["id"], "result": self._set_faults(connection, *params)}
        self.seen.requests[method] += 1
        if self.faults.delay_s:
            await asyncio.sleep(self.faults.delay_s)
        if self.faults.is_silent:
            return None
        head = {"jsonrpc": "2.0", "id": request["id"]}
        try:
            if method in self.faults.errors:
                raise RpcError(*self.faults.errors[method])
            if method in SUBSCRIPTIONS:
                return head | {"result": self._subscribe(connection, method, params)}
            act = METHODS.get(method)
            if act is None:
                raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method}")
            return head | {"result": act(self, *params)}
        except RpcError as error:
            return head | {"error": error.error}
        except PoolRefused as error:
            return head | {"error": RpcError(error.code, "Invalid Transaction", str(error)).error}
        except ChainUnavailable as error:
            return head | {"error": RpcError(INTERNAL_ERROR, str(error)).error}

    def _set_faults(self, asking: ServerConnection, values: dict[str, Any]) -> bool:
        """Switch faults from another process, over a connection that they do not touch."""
        others = [connection for connection in self._connections if connection is not asking]
        if values.pop("drop", False):
            for connection in others:
                connection.transport.abort()
        if values.pop("close", False):
            for connection in others:
                self._closing.add(task := asyncio.create_task(connection.close()))
                task.add_done_callback(self._closing.discard)
        for name, value in values.items():
            setattr(self.faults, name, value)
        return True

    def _subscribe(self, connection: ServerConnection, method: str, params: list[Any]) -> str:
        self._subscriptions += 1
        name = f"subscription-{self._subscriptions}"
        updates = SUBSCRIPTIONS[method](self, *params)

        async def stream() -> None:
            with suppress(ConnectionClosed):
                async for update in updates:
                    told = {"subscription": name, "result": update}
                    await connection.send(json.dumps({"jsonrpc": "2.0", "method": method, "params": told}))

        task = self._streams[name] = asyncio.create_task(stream(), name=name)
        task.add_done_callback(lambda _: self._streams.pop(name))
        return name

    def _unsubscribe(self, name: str) -> bool:
        stream = self._streams.get(name)
        return stream is not None and stream.cancel()

    # Blocks -------------------------------------------------------------------------------------

    def _head(self) -> int:
        return max(1, self.chain.height() - self.faults.stale_blocks)

    def _hash(self, height: int | None = None) -> str | None:
        if height == 0:
            return self._genesis
        return self.chain.block_hash(self._head() if height is None else height)

    def _height(self, block_hash: str | None) -> int | None:
        if block_hash is None:
            return self._head()
        return 0 if block_hash == self._genesis else self.chain.find_block(block_hash)

    def _header(self, block_hash: str | None = None) -> Answer:
        height = self._height(block_hash)
        if height is None:
            return None
        zero = "0x" + "00" * 32
        return {
            "number": hex(height),
            "parentHash": self._hash(height - 1) if height else zero,
            "stateRoot": zero,
            "extrinsicsRoot": zero,
            "digest": {"logs": []},
        }

    def _block(self, block_hash: str | None = None) -> Answer:
        height = self._height(block_hash)
        if height is None:
            return None
        extrinsics = ["0x" + data.hex() for data in self._bodies.get(height, [])]
        return {
            "block": {"header": self._header(block_hash), "extrinsics": extrinsics},
            "justifications": None,
        }

    async def _heads(self) -> AsyncIterator[Any]:
        seen = None
        while True:
            head = self._head()
            if head != seen and not self.faults.is_silent:
                seen = head
                yield self._header(self._hash(head))
            await asyncio.sleep(HEAD_POLL_S)

    # State --------------------------------------------------------------------------------------

    def _storage(self, key_hex: str, block_hash: str | None = None) -> str | None:
        key = bytes.fromhex(key_hex[2:])
        if key == self._runtime.events_key:
            records = self._events.get(self._height(block_hash) or 0, [])
            return "0x" + (compact(len(records)) + b"".join(records)).hex()
        value = self._runtime.storage(self._state(), key)
        return None if value is None else "0x" + value.hex()

    def _storage_of_many(self, keys: list[str], block_hash: str | None = None) -> Answer:
        changes = [[key, self._storage(key, block_hash)] for key in keys]
        return [{"block": block_hash, "changes": changes}]

    def _keys(self, prefix_hex: str, count: int, start_hex: str, block_hash: str | None = None) -> list[str]:
        del block_hash
        keys = self._runtime.keys(self._state(), bytes.fromhex(prefix_hex[2:]))
        start = bytes.fromhex(start_hex[2:])
        return ["0x" + key.hex() for key in keys if key > start][:count]

    def _call(self, method: str, data_hex: str, block_hash: str | None = None) -> str:
        del block_hash
        if method == "Metadata_metadata_at_version":
            return self._runtime.metadata_answer
        if method == "TransactionPaymentApi_query_info":
            return "0x" + self._runtime.no_fee.hex()
        result = self._runtime.call(self._state(), method, bytes.fromhex(data_hex.removeprefix("0x")))
        if result is None:
            raise RpcError(INTERNAL_ERROR, f"Exported method {method} is not found")
        return "0x" + result.hex()

    def _state(self) -> LocalState:
        return self.chain.state()

    # Extrinsics ---------------------------------------------------------------------------------

    def _next_index(self, account: str) -> int:
        return self._nonces.next(account) + self.faults.nonce_offset

    def _submit(self, data_hex: str) -> tuple[str, str]:
        """Check an extrinsic and put it into the head's block; its hash and the block's."""
        data = bytes.fromhex(data_hex[2:])
        extrinsic = read_extrinsic(self._runtime, self.chain, self._genesis, data)
        self._nonces.use(extrinsic.signer, extrinsic.nonce)
        error = self.faults.reject_dispatch
        if self.faults.swallow:
            self.faults.swallow -= 1
        elif error is None:
            error = dispatch(self.chain, extrinsic)
            self.seen.extrinsics.append(f"{extrinsic.module}.{extrinsic.function}")
        height = self.chain.height()
        body = self._bodies.setdefault(height, [])
        pallet = "SubtensorModule" if self.faults.reject_dispatch else extrinsic.module
        self._events.setdefault(height, []).append(outcome_event(self._runtime, len(body), pallet, error))
        body.append(data)
        if self.faults.lose_answers:
            self.faults.lose_answers -= 1
            raise _AnswerLost
        included = self.chain.block_hash(height)
        assert included is not None
        return extrinsic.hash, included

    def _submit_unwatched(self, data_hex: str) -> str:
        return self._submit(data_hex)[0]

    def _watch(self, data_hex: str) -> AsyncIterator[Any]:
        _, included = self._submit(data_hex)

        async def statuses() -> AsyncIterator[Any]:
            yield "ready"
            yield {"inBlock": included}
            yield {"finalized": included}

        return statuses()


METHODS: dict[str, Callable[..., Answer]] = {
    "chain_getHead": SubtensorNode._hash,
    "chain_getFinalizedHead": SubtensorNode._hash,
    "chain_getBlockHash": SubtensorNode._hash,
    "chain_getHeader": SubtensorNode._header,
    "chain_getBlock": SubtensorNode._block,
    "state_getStorageAt": SubtensorNode._storage,
    "state_getStorage": SubtensorNode._storage,
    "state_queryStorageAt": SubtensorNode._storage_of_many,
    "state_getKeysPaged": SubtensorNode._keys,
    "state_getRuntimeVersion": lambda node, _at=None: node._runtime.version,
    "state_call": SubtensorNode._call,
    "account_nextIndex": SubtensorNode._next_index,
    "author_submitExtrinsic": SubtensorNode._submit_unwatched,
    "author_unwatchExtrinsic": SubtensorNode._unsubscribe,
    "chain_unsubscribeNewHeads": SubtensorNode._unsubscribe,
    "chain_unsubscribeFinalizedHeads": SubtensorNode._unsubscribe,
}

SUBMISSIONS = ("author_submitExtrinsic", "author_submitAndWatchExtrinsic")

SUBSCRIPTIONS: dict[str, Callable[..., AsyncIterator[Any]]] = {
    "author_submitAndWatchExtrinsic": SubtensorNode._watch,
    "chain_subscribeNewHeads": SubtensorNode._heads,
    "chain_subscribeFinalizedHeads": SubtensorNode._heads,
}
