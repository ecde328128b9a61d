"""The head of the chain as events: heights that only grow, with honest gaps."""

import structlog

from node.bus import Bus
from node.chain.interface import Chain
from node.clock import Clock
from protocol.errors import ChainRejected, ChainUnavailable
from protocol.events import BlockAdvanced
from protocol.types import BlockHeight

log = structlog.get_logger(__name__)

POLL_MAX_S = 3.0


class BlockWatcher:
    """Component that polls the chain and publishes BlockAdvanced for every rise of the head.

    Polling, because the SDK's subscription can die silently when a server closes it. A head that goes
    back is not published: components wait until it has passed the highest height seen. Raises
    ChainUnavailable when the chain has been silent for `unreachable_after_s`.
    """

    name = "block watcher"

    def __init__(self, chain: Chain, bus: Bus, clock: Clock, *, unreachable_after_s: float) -> None:
        self._chain = chain
        self._bus = bus
        self._clock = clock
        self._unreachable_after_s = unreachable_after_s
        self._poll_s: float | None = None
        self._last_answer_s: float | None = None
        self._is_silent = False
        self._is_back = False
        self.height: BlockHeight | None = None

    @property
    def silent_s(self) -> float:
        """Seconds since the chain last answered (since the start, before its first answer)."""
        return 0.0 if self._last_answer_s is None else self._clock.monotonic() - self._last_answer_s

    async def run(self) -> None:
        """Watch until cancelled; raises ChainUnavailable when the chain stays silent."""
        self._last_answer_s = self._clock.monotonic()
        while True:
            try:
                if self._poll_s is None:
                    self._poll_s = min(await self._chain.block_time_s() / 2, POLL_MAX_S)
                height = await self._chain.height()
            except (ChainUnavailable, ChainRejected) as error:
                self._note_silence(error)
            else:
                self._note_answer()
                await self._publish(height)
            await self._clock.sleep(self._poll_s or 1.0)

    async def _publish(self, height: BlockHeight) -> None:
        previous = self.height
        if previous is not None and height <= previous:
            if height < previous and not self._is_back:
                self._is_back = True
                log.warning("chain head went back", height=height, highest=previous)
            return
        self._is_back = False
        self.height = height
        await self._bus.publish(BlockAdvanced(height=height, previous=previous))

    def _note_answer(self) -> None:
        if self._is_silent:
            log.info("chain answers again", silent_s=round(self.silent_s, 1))
        self._is_silent = False
        self._last_answer_s = self._clock.monotonic()

    def _note_silence(self, error: Exception) -> None:
        if self.silent_s >= self._unreachable_after_s:
            raise ChainUnavailable(
                f"the chain has not answered for {self.silent_s:.0f} s, the limit is "
                f"{self._unreachable_after_s:g} s (chain.unreachable_after_s): {error}"
            ) from error
        if not self._is_silent:
            log.warning("chain does not answer", error=str(error))
        self._is_silent = True
