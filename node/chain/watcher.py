"""The head of the chain as events: heights that only grow, with honest gaps."""

from typing import Any

import structlog

from node.bus import Bus
from node.chain.interface import Chain
from node.clock import Clock
from node.metrics import Metrics
from protocol.errors import ChainRejected, ChainUnavailable
from protocol.events import BlockAdvanced
from protocol.types import BlockHeight

log = structlog.get_logger(__name__)

POLL_MAX_S = 3.0
UNKNOWN_POLL_S = 1.0
"""Between attempts while the block time is not known yet."""
STALLED_BLOCKS = 5
STALLED_MIN_S = 15.0
"""A head that stands still for so long, and for so many blocks' time, has been left behind by its node."""


class BlockWatcher:
    """Component that polls the chain and publishes BlockAdvanced for every rise of the head.

    Polling, because the SDK's subscription can die silently when a server closes it. A head that goes
    back is not published: components wait until it has passed the highest height seen. A head that stands
    still makes the watcher change its connection. Raises ChainUnavailable when the chain has been silent
    for `unreachable_after_s`.
    """

    name = "block watcher"

    def __init__(
        self, chain: Chain, bus: Bus, clock: Clock, *, unreachable_after_s: float, metrics: Metrics
    ) -> None:
        self._chain = chain
        self._bus = bus
        self._clock = clock
        self._metrics = metrics
        self._unreachable_after_s = unreachable_after_s
        self._block_time_s: float | None = None
        self._last_answer_s: float | None = None
        self._last_rise_s: float | None = None
        self._last_turn_s: float | None = None
        self._changed_at_s = 0.0
        self._is_silent = False
        self._is_back = False
        self.height: BlockHeight | None = None

    @property
    def silent_s(self) -> float:
        """Seconds since the chain last answered (since the start, before its first answer)."""
        return self._since(self._last_answer_s)

    @property
    def idle_s(self) -> float:
        """Seconds since the watcher last finished a poll, answered or not: what a watchdog looks at."""
        return self._since(self._last_turn_s)

    @property
    def lag_s(self) -> float:
        """Seconds by which the next block is overdue; 0 while blocks come in time."""
        return max(0.0, self._since(self._last_rise_s) - (self._block_time_s or 0.0))

    async def describe(self) -> dict[str, Any]:
        """The head as last seen, how late the next block is and how long the chain has been silent."""
        return {"height": self.height, "lag_s": round(self.lag_s), "silent_s": round(self.silent_s)}

    async def run(self) -> None:
        """Watch until cancelled; raises ChainUnavailable when the chain stays silent."""
        now_s = self._clock.monotonic()
        self._last_answer_s = self._last_rise_s = self._last_turn_s = now_s
        while True:
            try:
                if self._block_time_s is None:
                    self._block_time_s = await self._chain.block_time_s()
                height = await self._chain.height()
            except (ChainUnavailable, ChainRejected) as error:
                self._note_silence(error)
            else:
                self._note_answer()
                await self._publish(height)
            self._change_stalled_connection()
            self._metrics.block_lag.set(self.lag_s)
            self._last_turn_s = self._clock.monotonic()
            await self._clock.sleep(self._poll_s())

    def _poll_s(self) -> float:
        return UNKNOWN_POLL_S if self._block_time_s is None else min(self._block_time_s / 2, POLL_MAX_S)

    def _since(self, moment_s: float | None) -> float:
        return 0.0 if moment_s is None else self._clock.monotonic() - moment_s

    async def _publish(self, height: BlockHeight) -> None:
        previous = self.height
        if previous is not None and height <= previous:
            if height < previous and not self._is_back:
                self._is_back = True
                log.warning("chain head went back", height=height, highest=previous)
            return
        self._is_back = False
        self.height = height
        self._last_rise_s = self._clock.monotonic()
        await self._bus.publish(BlockAdvanced(height=height, previous=previous))

    def _change_stalled_connection(self) -> None:
        """Ask elsewhere when blocks are long overdue; a chain that does not answer is no such case."""
        limit_s = max(STALLED_BLOCKS * (self._block_time_s or 0.0), STALLED_MIN_S)
        if self._is_silent or min(self.lag_s, self._since(self._changed_at_s)) < limit_s:
            return
        log.warning("chain head stands still: changing the connection", height=self.height, lag_s=self.lag_s)
        self._changed_at_s = self._clock.monotonic()
        self._chain.reconnect()

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
