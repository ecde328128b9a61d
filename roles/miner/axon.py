"""Tells the chain where validators find the miner's inference server."""

import asyncio
from typing import Final

from node.chain.interface import Chain, HotkeyHolder
from node.clock import Clock
from node.logs import get_logger
from node.settings_model import Settings
from protocol.errors import ChainRejected, ChainUnavailable
from roles.backoff import Backoff

LOCAL_IP: Final = "127.0.0.1"
LONGEST_WAIT_S: Final = 300.0

_log = get_logger(__name__)


class AxonPublisher:
    """Component that publishes the address once at start, if the chain shows another, and then waits.

    `bound_port` is where the inference server listens, here or in a process of its own; 0 when nobody knows.
    """

    name = "axon publisher"

    def __init__(
        self, *, settings: Settings, chain: Chain, wallet: HotkeyHolder, clock: Clock, bound_port: int
    ) -> None:
        self._settings = settings
        self._chain = chain
        self._wallet = wallet
        self._clock = clock
        self._bound_port = bound_port

    async def run(self) -> None:
        """Publish, then wait until cancelled. Raises NotPermitted when the hotkey is not registered."""
        inference = self._settings.inference
        ip = LOCAL_IP if self._settings.is_local_chain else inference.external_ip
        port = inference.external_port or self._bound_port
        if ip is None:
            _log.warning(
                "the axon is not published: set inference.external_ip to the address that validators reach",
                port=port,
            )
        elif port == 0:
            _log.warning("the axon is not published: set inference.port or inference.external_port")
        else:
            await self._publish(ip, port)
        await asyncio.Event().wait()

    async def _publish(self, ip: str, port: int) -> None:
        backoff = Backoff(self._clock, longest_s=LONGEST_WAIT_S)
        while True:
            try:
                await self._chain.serve_axon(self._wallet, ip, port)
            except (ChainRejected, ChainUnavailable) as error:
                # The chain limits how often an axon may change.
                await backoff.wait(error, ip=ip, port=port)
                continue
            _log.info("axon on chain", ip=ip, port=port)
            return
