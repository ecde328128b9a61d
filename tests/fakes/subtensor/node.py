"""Websocket JSON-RPC as a subtensor node speaks it, over the embedded local chain."""

import asyncio
import json
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from node.chain.local import LocalChain
from protocol.errors import ChainUnavailable
from tests.fakes.subtensor.extrinsics import PoolRefused
from tests.fakes.subtensor.faults import Faults, Seen
from tests.fakes.subtensor.rpc import (
    INTERNAL_ERROR,
    METHODS,
    SUBMISSIONS,
    SUBSCRIPTIONS,
    AnswerLost,
    ChainRpc,
    RpcError,
)

SET_FAULTS = "fake_faults"
METHOD_NOT_FOUND = -32601
UNSUBSCRIPTIONS = (
    "author_unwatchExtrinsic",
    "chain_unsubscribeNewHeads",
    "chain_unsubscribeFinalizedHeads",
)


class SubtensorNode:
    """One node; several may stand in front of one chain. `faults` may be changed at any moment."""

    def __init__(
        self, chain: LocalChain, fixture: Path, *, port: int = 0, has_consensus: bool = True
    ) -> None:
        self.port = port
        self.faults = Faults()
        self.seen = Seen()
        self.rpc = ChainRpc(chain, fixture, self.faults, self.seen, has_consensus=has_consensus)
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
        except AnswerLost:
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
            if method in UNSUBSCRIPTIONS:
                return head | {"result": self._unsubscribe(*params)}
            act = METHODS.get(method)
            if act is None:
                raise RpcError(METHOD_NOT_FOUND, f"Method not found: {method}")
            return head | {"result": act(self.rpc, *params)}
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
        updates = SUBSCRIPTIONS[method](self.rpc, *params)

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
