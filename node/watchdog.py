"""Ends a process that makes no progress, and tells systemd about one that does."""

import asyncio
import faulthandler
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from node.logs import get_logger
from node.runtime import EXIT_BUG
from node.settings_model import Settings

NOTIFY_SOCKET = "NOTIFY_SOCKET"
WATCHDOG_USEC = "WATCHDOG_USEC"
LONGEST_PAUSE_S = 5.0
LOOP = "event loop"
CALLS_IN_A_ROW = 3

Ages = Mapping[str, Callable[[], float]]
"""For every part that has to make progress, how many seconds ago it last did."""

_log = get_logger(__name__)


class ServiceManager:
    """systemd as seen from a service of `Type=notify` (sd_notify(3)); without one, says nothing."""

    def __init__(self, env: Mapping[str, str] = os.environ) -> None:
        self._address = env.get(NOTIFY_SOCKET, "")
        given_us = env.get(WATCHDOG_USEC, "")
        self.watchdog_s = int(given_us) / 1e6 if given_us.isdigit() else None
        """After so long without a ping systemd ends the process; None: it does not watch."""

    def tell(self, state: str) -> None:
        """Send one state, as `READY=1`; a manager that went away is no reason to stop."""
        if not self._address:
            return
        # "@" stands for the zero byte of an abstract socket.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.connect(address)
            channel.sendall(state.encode())


def open_watchdog(settings: Settings, ages: Ages) -> "Watchdog":
    """The watchdog of a role; a part whose call to the chain runs into its deadline is not stuck."""
    limit_s = max(settings.node.watchdog_s, CALLS_IN_A_ROW * settings.chain.call_timeout_s)
    return Watchdog(ages, limit_s=limit_s)


class Watchdog:
    """Component that ends the process with exit code 70 when the event loop, or one of the parts in `ages`,
    has made no progress for `limit_s`, so that the supervisor starts it again.

    A thread looks, because a loop that hangs cannot. systemd is pinged from the loop and only while all parts
    progress: a process that is stopped, or whose thread died, is ended by systemd's own watchdog.
    """

    name = "watchdog"

    def __init__(
        self,
        ages: Ages,
        *,
        limit_s: float,
        manager: ServiceManager | None = None,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._ages = dict(ages)
        self._limit_s = limit_s
        self._manager = manager or ServiceManager()
        self._end = end
        self._pause_s = min(limit_s / 4, (self._manager.watchdog_s or limit_s) / 3, LONGEST_PAUSE_S)
        self._beat_s = time.monotonic()
        self._spared_until_s = 0.0
        self._is_over = threading.Event()

    async def run(self) -> None:
        """Ping and look until cancelled."""
        # Time as the thread sees it too: what hangs may be the very thing that tells the time to others.
        self._beat_s = time.monotonic()
        threading.Thread(target=self._look, name=self.name, daemon=True).start()
        self._manager.tell("READY=1")
        try:
            while True:
                self._beat_s = time.monotonic()
                if not self._stuck():
                    self._manager.tell("WATCHDOG=1")
                await asyncio.sleep(self._pause_s)
        finally:
            self._manager.tell("STOPPING=1")
            self._is_over.set()

    def _look(self) -> None:
        """The thread: end the process when something is stuck."""
        looked_s = time.monotonic()
        while not self._is_over.wait(self._pause_s):
            was_stopped = time.monotonic() - looked_s > self._limit_s / 2
            looked_s = time.monotonic()
            if was_stopped:
                # Everything is late by as much: it is given time to catch up.
                self._spared_until_s = looked_s + self._limit_s
            stuck = self._stuck()
            if stuck:
                _log.critical("no progress: ending the process", stuck=stuck, limit_s=self._limit_s)
                faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
                self._end(EXIT_BUG)
                return

    def _stuck(self) -> list[str]:
        """Names of what has made no progress for too long."""
        if time.monotonic() < self._spared_until_s:
            return []
        stuck = [name for name, age_s in self._ages.items() if age_s() > self._limit_s]
        return [LOOP, *stuck] if time.monotonic() - self._beat_s > self._limit_s else stuck
