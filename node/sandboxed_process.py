"""A running sandbox, with everything that descends from it."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path


class SandboxedProcess:
    """A running sandbox; `kill` ends everything in it."""

    def __init__(self, process: subprocess.Popen[bytes], stage: Path | None) -> None:
        self._process = process
        self._stage = stage

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float) -> int | None:
        """Wait for the end; None when it still runs after the timeout."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def pause(self) -> None:
        """Stop the process and all that it started, until `resume`."""
        stopped: set[int] = set()
        # A process that is being made while others stop is there the next time.
        while found := _family(self._process.pid) - stopped:
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            stopped |= found

    def resume(self) -> None:
        """Let it go on."""
        for pid in _family(self._process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def kill(self) -> None:
        """End the process and, with its pid namespace, all that it started; safe to call again."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._stage is not None:
            self._stage.rmdir()
            self._stage = None


def _family(pid: int) -> set[int]:
    """A process and everything that descends from it; what lost its parent in a sandbox is its init's."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in parentheses, may hold anything.
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            # It ended meanwhile.
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    family, unseen = {pid}, [pid]
    while unseen:
        found = children.get(unseen.pop(), [])
        family.update(found)
        unseen += found
    return family
