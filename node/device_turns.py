"""Turns on a compute device between the processes of a machine: measurements give way to who cannot wait.

A measurement or a search is *background* work: it holds the device alone, and asks between two short steps
whether somebody urgent wants it. A validator's challenge is *urgent*: it says so, waits at most
URGENT_PATIENCE_S for the step to end, and then goes ahead whatever the other does, which costs the other the
accuracy of one trial.
"""

import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from types import TracebackType
from typing import Final, Self

from node.clock import Clock
from node.locks import FileLock, device_lock, device_lock_path
from node.logs import get_logger
from protocol.errors import ConfigError, DeviceBusy

URGENT_PATIENCE_S: Final = 2.0
"""The longest that urgent work waits for background work."""
GIVE_WAY_S: Final = 60.0
"""The longest that background work waits, each time, for urgent work to end before it asks for its turn."""
POLL_S: Final = 0.02

_log = get_logger(__name__)


class BackgroundTurn:
    """The turn of work that can wait; `with` it, and call `give_way` between two steps.

    `timeout_s` is how long others that measure may take before. Blocks the thread: not for an event loop.
    Raises DeviceBusy when the time is over, ConfigError when a lock's file cannot be opened.
    """

    def __init__(self, device: str, *, timeout_s: float, env: Mapping[str, str] = os.environ) -> None:
        self._lock = device_lock(device, timeout_s=timeout_s, env=env)
        self._wish = _wish(device, env, is_shared=False)

    def acquire(self) -> None:
        """Wait for the turn."""
        self._lock.acquire()
        self.give_way()

    def release(self) -> None:
        """Give the turn back; nothing happens when it is not held."""
        self._lock.release()

    def give_way(self) -> None:
        """Let urgent work have the device first, if there is any; the turn is held again afterwards."""
        if not self._is_wanted():
            return
        self._lock.release()
        ends = time.monotonic() + GIVE_WAY_S
        while self._is_wanted() and time.monotonic() < ends:
            time.sleep(POLL_S)
        self._lock.acquire()

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _is_wanted(self) -> bool:
        try:
            self._wish.acquire()
        except DeviceBusy:
            return True
        self._wish.release()
        return False


@asynccontextmanager
async def urgent_turn(
    device: str,
    clock: Clock,
    *,
    patience_s: float = URGENT_PATIENCE_S,
    env: Mapping[str, str] = os.environ,
) -> AsyncIterator[None]:
    """Hold the device, or after `patience_s` use it beside whoever does not give way.

    Not on a CPU, whose processes the system shares out. Where locks cannot be opened, nobody waits.
    """
    if device == "cpu":
        yield
        return
    ends = clock.monotonic() + patience_s
    with ExitStack() as held:
        try:
            await _take(_wish(device, env, is_shared=True), ends, clock, held)
            await _take(device_lock(device, timeout_s=0.0, env=env), ends, clock, held)
        except ConfigError as error:
            _log.warning("the device is used without a turn", device=device, reason=str(error))
        yield


async def _take(lock: FileLock, ends: float, clock: Clock, held: ExitStack) -> None:
    """Have `held` hold a lock, or give up when the time is over."""
    while True:
        try:
            held.enter_context(lock)
        except DeviceBusy:
            if clock.monotonic() >= ends:
                return
            await clock.sleep(POLL_S)
        else:
            return


def _wish(device: str, env: Mapping[str, str], *, is_shared: bool) -> FileLock:
    """The lock that urgent work shares while it wants or has the device."""
    path = device_lock_path(device, env)
    return FileLock(path.with_suffix(".urgent"), f"device {device} (urgent)", is_shared=is_shared)
