"""Which processes descend from which, and since when they run: from /proc."""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def family(pid: int) -> set[int]:
    """A process and everything that descends from it; what lost its parent in a sandbox is its init's."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        child = int(path.parent.name)
        fields = _fields(child)
        # None: it ended meanwhile.
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(child)
    found, unseen = {pid}, [pid]
    while unseen:
        below = children.get(unseen.pop(), [])
        found.update(below)
        unseen += below
    return found


def stop_family(pid: int, *, with_itself: bool = True) -> set[int]:
    """Stop (SIGSTOP) a process and everything that descends from it, and return what was stopped."""
    spared = set() if with_itself else {pid}
    stopped: set[int] = set()
    # A process that is being made while others stop is there the next time.
    while found := family(pid) - spared - stopped:
        signal_all(found, signal.SIGSTOP)
        stopped |= found
    return stopped


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes, some of which may have ended."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def start_time(pid: int) -> int | None:
    """When a process started, in ticks since boot; None when it is gone. No two have that and the number."""
    fields = _fields(pid)
    return None if fields is None else int(fields[19])


def _fields(pid: int) -> list[str] | None:
    """What follows the name in /proc/PID/stat, beginning with the state."""
    try:
        # The name, in parentheses, may hold anything, and need not be UTF-8.
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
