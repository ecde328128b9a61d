"""A pause in taking work while one evaluation after the other fails for reasons of the validator's own."""

from typing import Final

from node.clock import Clock
from node.logs import get_logger
from protocol.verdicts import Status

LONGEST_S: Final = 1800.0

_log = get_logger(__name__)


class Pause:
    """Begins with the second `infrastructure` verdict in a row, doubles with each further one.

    An outage would otherwise use up the tries of everything in the queue. One such verdict may be the
    submission's own doing, and takes nobody's time.
    """

    def __init__(self, clock: Clock, *, first_s: float) -> None:
        self._clock = clock
        self._first_s = first_s
        self._next_s: float | None = None
        """None: the last verdict was no such fault."""
        self._until_s = clock.monotonic()

    def note(self, status: Status) -> None:
        """Take note of a verdict."""
        if status is not Status.INFRASTRUCTURE:
            self._next_s = None
        elif self._next_s is None:
            self._next_s = self._first_s
        else:
            _log.warning(
                "evaluations fail for reasons of this host, no submission is taken for a while",
                pause_s=self._next_s,
            )
            self._until_s = self._clock.monotonic() + self._next_s
            self._next_s = min(2 * self._next_s, max(LONGEST_S, self._first_s))

    def is_on(self) -> bool:
        """Whether no submission should be taken now."""
        return self._clock.monotonic() < self._until_s
