"""One SDK client with deadlines: opened on demand, thrown away after a failure, opened again."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

import bittensor as bt
import structlog
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential
from websockets.exceptions import WebSocketException

from node.metrics import Metrics
from protocol.errors import ChainRejected, ChainUnavailable, NotPermitted, QuasarError

T = TypeVar("T")
log = structlog.get_logger(__name__)

TRANSPORT_ERRORS = (
    bt.RpcConnectionError,
    bt.ConnectionNotReady,
    TimeoutError,
    OSError,
    EOFError,
    WebSocketException,
)
"""What the SDK lets through when the chain cannot be reached."""

CLOSE_TIMEOUT_S = 15.0
"""Above the 10 s that a websocket itself waits for the other side before it drops the line."""
CLOSE_PATIENCE_S = 2.0
"""How long shutting down waits for connections to close."""
BACK_OFF_MAX_S = 1.5
LOST_NAMES = ("Dropped", "FinalityTimeout", "Retracted", "Usurped")
"""What the transaction pool says of an extrinsic that may still have been included."""
PERMISSION_NAMES = ("NotEnoughStakeToSetWeights", "NeuronNoValidatorPermit")


class Connection:
    """Runs operations on a `bittensor.Client` that `open_client` makes, unconnected.

    `where` names the chain in messages; `metrics` counts connections, calls and failures.
    """

    def __init__(
        self,
        open_client: Callable[[], Any],
        *,
        where: str,
        call_timeout_s: float,
        metrics: Metrics | None = None,
    ) -> None:
        self.where = where
        self.call_timeout_s = call_timeout_s
        self._open_client = open_client
        self._metrics = metrics or Metrics()
        self._client: Any = None
        self._opening = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def read(
        self, what: str, operation: Callable[[Any], Awaitable[T]], *, attempt_s: float | None = None
    ) -> T:
        """Run a read, again on a fresh client after a failure, until it works or the deadline passes.

        `attempt_s` limits one attempt (default: half the deadline), so that a connection that went
        dead without a word leaves time for another. Raises ChainUnavailable, ChainRejected, NotPermitted.
        """
        failure: ChainUnavailable | None = None
        limit_s = min(attempt_s or self.call_timeout_s, self.call_timeout_s / 2)
        try:
            async with asyncio.timeout(self.call_timeout_s):
                async for attempt in AsyncRetrying(
                    wait=wait_random_exponential(multiplier=0.1, max=BACK_OFF_MAX_S),
                    retry=retry_if_exception(_is_worth_retrying),
                    reraise=True,
                ):
                    with attempt:
                        try:
                            return await self._attempt(what, operation, limit_s)
                        except ChainUnavailable as error:
                            failure = error
                            raise
        except TimeoutError as error:
            self._discard(self._client)
            if failure is not None:
                raise failure from error
            raise self._no_answer(what, self.call_timeout_s) from error
        raise AssertionError("tenacity stops by returning or raising")

    async def write(self, what: str, operation: Callable[[Any], Awaitable[T]], *, timeout_s: float) -> T:
        """Run an operation once: after a failure its fate is unknown and the caller must read back.

        Raises ChainUnavailable, ChainRejected, NotPermitted.
        """
        return await self._attempt(what, operation, timeout_s)

    def discard(self) -> None:
        """Throw the client away; the next operation opens another."""
        self._discard(self._client)

    async def close(self) -> None:
        """Close the client, and wait a little for those still closing."""
        self.discard()
        if self._closing:
            await asyncio.wait(self._closing, timeout=CLOSE_PATIENCE_S)

    async def _attempt(self, what: str, operation: Callable[[Any], Awaitable[T]], limit_s: float) -> T:
        try:
            return await self._tried(what, operation, limit_s)
        except QuasarError as error:
            self._metrics.chain_failures.labels(type(error).__name__).inc()
            raise

    async def _tried(self, what: str, operation: Callable[[Any], Awaitable[T]], limit_s: float) -> T:
        client: Any = None
        began = time.perf_counter()
        try:
            async with asyncio.timeout(limit_s):
                client = await self._connected()
                return await operation(client)
        except TimeoutError as error:
            self._discard(client)
            raise self._no_answer(what, limit_s) from error
        except TRANSPORT_ERRORS as error:
            self._discard(client)
            raise ChainUnavailable(f"chain {self.where} cannot be reached to {what}: {error}") from error
        except bt.ChainError as error:
            if _is_unclear(error):
                self._discard(client)
                raise ChainUnavailable(f"chain {self.where} failed to {what}: {error}") from error
            raise refusal(error, what) from error
        except (bt.BittensorError, ValueError) as error:
            raise ChainRejected(f"chain {self.where} cannot {what}: {error}") from error
        finally:
            self._metrics.chain_rpc_duration.observe(time.perf_counter() - began)

    async def _connected(self) -> Any:
        async with self._opening:
            if self._client is None:
                client = self._open_client()
                self._metrics.chain_connections.inc()
                try:
                    await client.connect()
                except BaseException:
                    self._close_later(client)
                    raise
                self._client = client
            return self._client

    def _discard(self, client: Any) -> None:
        if client is not None and client is self._client:
            self._client = None
            self._close_later(client)

    def _close_later(self, client: Any) -> None:
        # A dead connection may take its time to close; nobody should wait for it.
        task = asyncio.create_task(self._close(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _close(self, client: Any) -> None:
        with suppress(*TRANSPORT_ERRORS, bt.BittensorError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await client.close()

    def _no_answer(self, what: str, limit_s: float) -> ChainUnavailable:
        return ChainUnavailable(f"chain {self.where} did not {what} within {limit_s:g} s")


def refusal(error: Any, what: str) -> QuasarError:
    """The node's error for the SDK's ChainError."""
    codes = (bt.ErrorCode.NOT_REGISTERED, bt.ErrorCode.NOT_AUTHORIZED)
    kind = NotPermitted if error.code in codes or error.name in PERMISSION_NAMES else ChainRejected
    name = f" ({error.name})" if error.name else ""
    return kind(f"the chain refused to {what}{name}: {error.message}; {error.remediation}")


def _is_unclear(error: Any) -> bool:
    # The SDK wraps broken connections and the node's internal errors in a ChainError without a name.
    return error.name in LOST_NAMES or (error.name is None and error.code is bt.ErrorCode.UNKNOWN)


def _is_worth_retrying(error: BaseException) -> bool:
    # An endpoint that refuses on purpose (403, 429) only gets angrier.
    return isinstance(error, ChainUnavailable) and not isinstance(error.__cause__, bt.RpcPolicyError)
