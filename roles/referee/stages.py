"""What every stage of an evaluation leaves behind: seconds, evidence, and the way to end early."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from protocol.shown_text import printable, shortened
from protocol.verdicts import Status

MAX_REASON_BYTES: Final = 4000
"""With the log's tail, the notes and the seeds it has to fit into a request to the API."""


def stated(reason: str) -> str:
    """A reason as evidence carries it."""
    return shortened(printable(reason), MAX_REASON_BYTES)


class Ended(Exception):
    """The evaluation is over: the status is known before the last stage."""

    def __init__(self, status: Status, reason: str, *, is_short_of_memory: bool = False) -> None:
        super().__init__(reason)
        self.status = status
        self.is_short_of_memory = is_short_of_memory
        """The host had too little of the GPU's memory for it."""


class Countdown:
    """Says how many seconds are left; time that was somebody else's does not count."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds
        self._stopped_at: float | None = None

    def __call__(self) -> float:
        return self._end - (self._clock() if self._stopped_at is None else self._stopped_at)

    def stop(self) -> None:
        """Let no time pass until `go`."""
        if self._stopped_at is None:
            self._stopped_at = self._clock()

    def go(self) -> None:
        """Let time pass."""
        if self._stopped_at is not None:
            self._end += self._clock() - self._stopped_at
            self._stopped_at = None

    def extend(self, seconds: float) -> None:
        """Give back time."""
        self._end += seconds


class Record:
    """Collects the evidence of one evaluation."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.stage_s: dict[str, float] = {}
        self.evidence: dict[str, Any] = {}
        self.fingerprint: str | None = None
        self.vram_mb: float | None = None
        """The most that the submission's worker held of the GPU."""

    @contextmanager
    def stage(self, name: str, announce: Callable[[str], None]) -> Iterator[None]:
        """Time one stage, also when it ends the evaluation."""
        announce(name)
        started = self._clock()
        try:
            yield
        finally:
            self.stage_s[name] = round(self._clock() - started, 4)
