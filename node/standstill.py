"""A process and all that it started, stopped; and whether it stayed so.

Whoever is stopped can have the kernel send it SIGCONT: a timer does. Nothing prevents that, but who ran shows
it: in how long it has run, in what it has started, or in that it has ended.
"""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from node.process_tree import family, signal_all, stat_fields, threads_of

LOOKS: Final = 500
"""Until it counts as not to be stopped; honest workers need a handful. No seconds: a host can stand still."""
SETTLED_S: Final = 0.005
"""For so long nothing may change: a thread is called stopped a little before it leaves its processor."""
WAITING_S: Final = 1.0
"""The same when threads wait in the kernel, where no signal reaches them; they stop when they return."""
NOISE_NS: Final = 10_000
"""Of honest workers none was ever seen to run at all, and to be woken takes more."""
ONCE_NS: Final = 10_000_000
"""For once: whoever traces it from outside, or a hypervisor, can make it look so."""
RETURN_NS: Final = 10_000_000
"""Of those that waited in the kernel, which ran until they had returned from there."""
_STOPPED, _WAITING, _RUNNING, _ENDED = "T", "D", "R", ("Z", "X")
_LEAVING: Final = "leaving"
"""Not a letter of the kernel's: it is ending, runs none of its own code any more, and heeds no signal."""
_PF_EXITING: Final = 4
_TICK_NS: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class RanWhileStopped(Exception):
    """It could not be stopped, or did not stay so; the text says how that showed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What happened to processes that were to stand still."""

    ran_ns: int
    returning_ns: int
    """How long those ran that waited in the kernel when they were to stop."""
    started: int
    """Processes and threads; so is `gone`."""
    gone: int


@dataclass(frozen=True, slots=True)
class _Thread:
    state: str
    ran_ns: int
    processor: int = field(compare=False)
    """Where it ran last."""


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
                if fields is None or fields[0] in _ENDED:
                    continue
                state, ran_ns = fields[0], _ran_ns(pid, task, fields)
                if int(fields[6]) & _PF_EXITING and state != _RUNNING:
                    state, ran_ns = _LEAVING, 0
                threads[pid, task, fields[19]] = _Thread(state, ran_ns, int(fields[36]))
        return cls(frozenset(pids), threads)

    def changes_until(self, now: "_Family") -> Changes:
        """How another look at them differs from this one."""
        stayed = {one for one, thread in self.threads.items() if thread.state != _LEAVING}
        return Changes(
            ran_ns=self._ran_until_ns(now, _STOPPED),
            returning_ns=self._ran_until_ns(now, _WAITING),
            started=len(now.pids - self.pids) + len(now.threads.keys() - self.threads.keys()),
            gone=len(stayed - now.threads.keys()),
        )

    def _ran_until_ns(self, now: "_Family", state: str) -> int:
        """How long the threads in a state have run."""
        return sum(
            now.threads[one].ran_ns - thread.ran_ns
            for one, thread in self.threads.items()
            if thread.state == state and one in now.threads
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

    @property
    def states(self) -> Counter[str]:
        """In which states the threads stand still, by the kernel's letters."""
        return Counter(thread.state for thread in self._found.threads.values())

    def changes(self) -> Changes:
        """What has happened since they were stopped."""
        return self._found.changes_until(self._look())

    def end(self, *, allowed_ns: int = NOISE_NS) -> Changes:
        """Let it go on, if it stood still since then. Raises RanWhileStopped."""
        now = self._look()
        changes = self._found.changes_until(now)
        for ran_ns, most_ns in ((changes.ran_ns, allowed_ns), (changes.returning_ns, RETURN_NS)):
            if ran_ns > most_ns:
                raise RanWhileStopped(f"it ran for {ran_ns / 1e6:.2f} ms while it was stopped")
        if changes.started:
            raise RanWhileStopped("processes or threads of it were started while it was stopped")
        # The kernel ends also what is stopped when memory runs short.
        if changes.gone and _ended_for_memory() == self._ended_for_memory:
            raise RanWhileStopped("processes or threads of it ended while it was stopped")
        signal_all(now.pids, signal.SIGCONT)
        return changes

    def _stop(self) -> _Family:
        since = time.monotonic()
        before = self._look()
        for _ in range(LOOKS):
            moving = {pid for (pid, *_), thread in before.threads.items() if thread.state != _STOPPED}
            signal_all(moving, signal.SIGSTOP)
            _visit({thread.processor for thread in before.threads.values()})
            time.sleep(SETTLED_S)
            now = self._look()
            if now != before:
                before, since = now, time.monotonic()
                continue
            states = {thread.state for thread in now.threads.values()}
            if states <= {_STOPPED}:
                return now
            if states <= {_STOPPED, _WAITING, _LEAVING} and time.monotonic() - since > WAITING_S:
                return now
        raise RanWhileStopped(f"it could not be stopped: it stood still at none of {LOOKS} looks")

    def _look(self) -> _Family:
        return _Family.of(family(self._pid) - self._spared)


def _visit(processors: Iterable[int]) -> None:
    """Run on each processor for a moment: whoever was leaving it has left.

    A thread is called stopped a little before it stops: much, if a hypervisor takes its processor away then.
    """
    own = os.sched_getaffinity(0)
    try:
        for processor in processors:
            # It may belong to others by now.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {processor})
    finally:
        os.sched_setaffinity(0, own)


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
