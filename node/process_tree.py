"""Which processes descend from which, and since when they run: from /proc."""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def family(pid: int) -> set[int]:
    """A process and everything that descends from it; what lost its parent in a sandbox is its init's."""
    by_parent = None if _lists_children() else _children_by_parent()
    found, unseen = {pid}, [pid]
    while unseen:
        parent = unseen.pop()
        below = (_children(parent) if by_parent is None else by_parent.get(parent, set())) - found
        found |= below
        unseen += below
    return found


def _lists_children() -> bool:
    return Path("/proc/thread-self/children").exists()


def _children(pid: int) -> set[int]:
    """Whom the threads of a process have started, or were given when others ended.

    The kernel lists them at once: of processes that start each other and end, however quickly, one is there.
    """
    found: set[int] = set()
    for thread in threads_of(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found.update(map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split()))
    return found


def threads_of(pid: int) -> list[str]:
    """The threads of a process by number; none when it is gone."""
    try:
        return [path.name for path in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _children_by_parent() -> dict[int, set[int]]:
    """Of all processes, for kernels without lists of children; who is quick can be missed."""
    children: dict[int, set[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        child = int(path.parent.name)
        fields = stat_fields(str(child))
        # None: it ended meanwhile.
        if fields is not None:
            children.setdefault(int(fields[1]), set()).add(child)
    return children


def stop_descendants(pid: int) -> set[int]:
    """Stop (SIGSTOP) everything that descends from a process, and return what was stopped."""
    stopped: set[int] = set()
    # A process that is being made while others stop is there the next time.
    while found := family(pid) - {pid} - stopped:
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
    fields = stat_fields(str(pid))
    return None if fields is None else int(fields[19])


def stat_fields(task: str) -> list[str] | None:
    """What follows the name in /proc/`task`/stat, beginning with the state; None when it is gone."""
    try:
        # The name, in parentheses, may hold anything, and need not be UTF-8.
        return Path(f"/proc/{task}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except (FileNotFoundError, ProcessLookupError):
        return None
