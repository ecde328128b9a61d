"""Waiting longer and longer between attempts at something that must succeed in the end."""

import random
from typing import Final

from node.clock import Clock
from node.logs import get_logger
from protocol.errors import ApiRefused, QuasarError

FIRST_S: Final = 0.5
LONGEST_S: Final = 30.0

_log = get_logger(__name__)


class Backoff:
    """Delays that double from half a second to half a minute, with jitter, so that nodes spread out."""

    def __init__(self, clock: Clock, *, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> None:
        self._clock = clock
        self._next_s = first_s
        self._longest_s = longest_s

    async def wait(self, error: QuasarError, **about: object) -> None:
        """Log why, and sleep; never shorter than the other side asked for."""
        delay_s = self._next_s * random.uniform(0.5, 1.0)
        if isinstance(error, ApiRefused) and error.retry_after_s is not None:
            delay_s = max(delay_s, error.retry_after_s)
        self._next_s = min(2 * self._next_s, self._longest_s)
        _log.warning("will be tried again", reason=str(error), wait_s=round(delay_s, 1), **about)
        await self._clock.sleep(delay_s)
