"""A process and all that it started, stopped; and whether it stayed so.

Whoever is stopped can have the kernel send it SIGCONT: a timer does. Nothing prevents that, but who ran shows
it: in how long it has run, in what it has started, or in that it has ended.
"""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.process_tree import family, signal_all, stat_fields, threads_of

STOP_TIMEOUT_S: Final = 30.0
SETTLED_S: Final = 0.005
"""For so long nothing may change: a thread is called stopped a little before it leaves its processor."""
WAITING_S: Final = 1.0
"""The same when threads wait in the kernel, where no signal reaches them; they stop when they return."""
NOISE_NS: Final = 10_000
"""Of honest workers none was ever seen to run at all, and to be woken takes more."""
RETURN_NS: Final = 10_000_000
"""Of those that waited in the kernel, which ran until they had returned from there."""
_STOPPED, _WAITING, _ENDED = "T", "D", ("Z", "X")
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class RanWhileStopped(Exception):
    """It could not be stopped, or did not stay so; the text says how that showed."""


@dataclass(frozen=True, slots=True)
class _Thread:
    state: str
    ran_ns: int


@dataclass(frozen=True, slots=True)
class _Family:
    """What can be seen of processes without asking them."""

    pids: frozenset[int]
    threads: Mapping[tuple[int, str, str], _Thread]
    """By process, thread, and when it started; those that have not ended."""

    @classmethod
    def of(cls, pids: set[int]) -> "_Family":
        threads = {}
        for pid in pids:
            for task in threads_of(pid):
                fields = stat_fields(f"{pid}/task/{task}")
                if fields is not None and fields[0] not in _ENDED:
                    threads[pid, task, fields[19]] = _Thread(fields[0], _ran_ns(pid, task, fields))
        return cls(frozenset(pids), threads)

    def ran_since_ns(self, before: "_Family", state: str) -> int:
        """How long threads that were in that state before have run since."""
        return sum(
            self.threads[one].ran_ns - thread.ran_ns
            for one, thread in before.threads.items()
            if thread.state == state and one in self.threads
        )


class Standstill:
    """A process and everything that descends from it, stopped (SIGSTOP) until `end`.

    `with_itself`: whether the process is stopped, too. Raises RanWhileStopped.
    """

    def __init__(self, pid: int, *, with_itself: bool = True) -> None:
        self._pid = pid
        self._spared = set() if with_itself else {pid}
        self._ended_for_memory = _ended_for_memory()
        self._found = self._stop()

    def end(self) -> None:
        """Let it go on, if it stood still since then. Raises RanWhileStopped."""
        now = self._look()
        for state, allowed_ns in ((_STOPPED, NOISE_NS), (_WAITING, RETURN_NS)):
            ran_ns = now.ran_since_ns(self._found, state)
            if ran_ns > allowed_ns:
                raise RanWhileStopped(f"it ran for {ran_ns / 1e6:.2f} ms while it was stopped")
        if now.pids - self._found.pids or now.threads.keys() - self._found.threads.keys():
            raise RanWhileStopped("processes or threads of it were started while it was stopped")
        # The kernel ends also what is stopped when memory runs short.
        if self._found.threads.keys() - now.threads.keys() and _ended_for_memory() == self._ended_for_memory:
            raise RanWhileStopped("processes or threads of it ended while it was stopped")
        signal_all(now.pids, signal.SIGCONT)

    def _stop(self) -> _Family:
        started = since = time.monotonic()
        before = self._look()
        while time.monotonic() - started < STOP_TIMEOUT_S:
            moving = {pid for (pid, *_), thread in before.threads.items() if thread.state != _STOPPED}
            signal_all(moving, signal.SIGSTOP)
            time.sleep(SETTLED_S)
            now = self._look()
            if now != before:
                before, since = now, time.monotonic()
                continue
            states = {thread.state for thread in now.threads.values()}
            if states <= {_STOPPED}:
                return now
            if states <= {_STOPPED, _WAITING} and time.monotonic() - since > WAITING_S:
                return now
        raise RanWhileStopped(f"it could not be stopped in {STOP_TIMEOUT_S:.0f} s")

    def _look(self) -> _Family:
        return _Family.of(family(self._pid) - self._spared)


def _ran_ns(pid: int, task: str, fields: list[str]) -> int:
    """By the scheduler's account; by the ticks in /proc/PID/stat where the kernel keeps none."""
    ticks = (int(fields[11]) + int(fields[12])) * _TICK_NS
    try:
        return max(ticks, int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0]))
    except (FileNotFoundError, ProcessLookupError):
        return ticks


def _ended_for_memory() -> int:
    """How many processes of the host the kernel has ended so far because memory ran short."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
