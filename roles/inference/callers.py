"""Who may use the model: validators with a permit, by btauth/1, each signed request once."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from node.chain.interface import Metagraph
from node.clock import Clock
from node.logs import get_logger
from protocol.auth import NONCE_LIFETIME_S, verify_request
from protocol.errors import ChainUnavailable, NotPermitted, SignatureInvalid
from protocol.types import Hotkey

MetagraphProvider = Callable[[], Awaitable[Metagraph]]

METAGRAPH_MAX_AGE_S: Final = 60.0
STALE_METAGRAPH_S: Final = 3600.0
"""With the chain away, permits are taken from a metagraph up to this old."""
RETRY_S: Final = 5.0
"""Strangers, however many, make the metagraph be read again no more often than this."""

_log = get_logger(__name__)


class Callers:
    """Decides who may ask; `own_hotkey` is the receiver that requests must be signed for."""

    def __init__(self, own_hotkey: str, metagraph: MetagraphProvider, clock: Clock) -> None:
        self._own_hotkey = own_hotkey
        self._ask_chain = metagraph
        self._clock = clock
        self._metagraph: Metagraph | None = None
        self._read_at_s = float("-inf")
        self._tried_at_s = float("-inf")
        self._asking = asyncio.Lock()
        self._nonces: set[tuple[Hotkey, int]] = set()
        self._nonce_order: deque[tuple[float, tuple[Hotkey, int]]] = deque()

    async def check(self, request: web.Request) -> Hotkey:
        """The validator behind a request.

        The miner's own hotkey may ask too: it tests its server. Raises SignatureInvalid, NotPermitted,
        ChainUnavailable.
        """
        caller = verify_request(
            request.headers,
            await request.read(),
            method=request.method,
            path=request.raw_path,
            self_hotkey=self._own_hotkey,
            now_ns=int(self._clock.now().timestamp() * 1e9),
        )
        if caller.hotkey != self._own_hotkey and not await self._has_permit(caller.hotkey):
            raise NotPermitted(
                f"hotkey {caller.hotkey} has no validator permit: only validators may ask here"
            )
        self._use_nonce((caller.hotkey, caller.nonce_ns))
        return caller.hotkey

    async def _has_permit(self, hotkey: Hotkey) -> bool:
        for max_age_s in (METAGRAPH_MAX_AGE_S, RETRY_S):
            neuron = (await self._known(max_age_s)).neurons.get(hotkey)
            if neuron is not None and neuron.validator_permit:
                return True
        return False

    async def _known(self, max_age_s: float) -> Metagraph:
        async with self._asking:
            now_s = self._clock.monotonic()
            if now_s - self._read_at_s > max_age_s and now_s - self._tried_at_s > RETRY_S:
                self._tried_at_s = now_s
                try:
                    self._metagraph = await self._ask_chain()
                    self._read_at_s = now_s
                except ChainUnavailable as error:
                    _log.warning("metagraph not read", reason=str(error))
            if self._metagraph is None or now_s - self._read_at_s > STALE_METAGRAPH_S:
                raise ChainUnavailable("the chain does not answer, so permits cannot be checked: try again")
            return self._metagraph

    def _use_nonce(self, nonce: tuple[Hotkey, int]) -> None:
        now_s = self._clock.monotonic()
        while self._nonce_order and now_s - self._nonce_order[0][0] > 2 * NONCE_LIFETIME_S:
            self._nonces.discard(self._nonce_order.popleft()[1])
        if nonce in self._nonces:
            raise SignatureInvalid(f"the request with nonce {nonce[1]} came before: sign every request anew")
        self._nonces.add(nonce)
        self._nonce_order.append((now_s, nonce))
