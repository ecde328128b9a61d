"""The SDK's RPC substrate, made to let go of a connection whose opening was cut short."""

from typing import Any

import bittensor as bt


class ClosingRpcSubstrate(bt.RpcSubstrate):  # type: ignore[misc]  # the SDK is untyped to mypy
    """RpcSubstrate whose `close` also ends connections that were still being opened.

    The SDK keeps a connection only once it is ready: cancelled before that (a deadline on a black hole),
    its supervisor task would go on dialling and hold a socket for ever.
    """

    def __init__(self, endpoint: str, *, fallback_endpoints: list[str]) -> None:
        super().__init__(endpoint, fallback_endpoints=fallback_endpoints)
        self._made: list[Any] = []

    def _interface(self, endpoint: str, fallbacks: list[str]) -> Any:
        connection = super()._interface(endpoint, fallbacks)
        self._made.append(connection)
        return connection

    async def close(self) -> None:
        """Close whatever was opened, ready or not; harmless when repeated."""
        await super().close()
        while self._made:
            await self._made.pop().close()
