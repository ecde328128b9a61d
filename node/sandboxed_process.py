"""A running sandbox, with everything that descends from it."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Final

from node.cgroups import Cgroup
from node.standstill import NOISE_NS, ONCE_NS, Standstill

TERM_TIMEOUT_S: Final = 10.0


class SandboxedProcess:
    """A running sandbox; `kill` ends everything in it.

    `is_supervised`: the process is our own, runs outside of the sandbox, and ends all that it started when it
    gets SIGTERM.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        stage: Path | None = None,
        cgroup: Cgroup | None = None,
        *,
        is_supervised: bool = False,
    ) -> None:
        self._process = process
        self._stage = stage
        self._cgroup = cgroup
        self._is_supervised = is_supervised
        self._standstill: Standstill | None = None
        self._has_run_once = False

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
        """Stop the process and all that it started, until `resume`; safe to call again.

        Raises:
            RanWhileStopped: it could not be stopped.
        """
        if freezer := self._freezer():
            freezer.freeze()
        elif self._standstill is None:
            # Who supervises must hear of the end.
            self._standstill = Standstill(self._process.pid, with_itself=not self._is_supervised)

    def resume(self) -> None:
        """Let it go on.

        Raises:
            RanWhileStopped: it did not stay stopped, which nothing prevents without a cgroup.
        """
        if freezer := self._freezer():
            freezer.thaw()
        elif self._standstill is not None:
            # With one pause of all nobody gains anything; an honest one would lose all.
            changes = self._standstill.end(allowed_ns=NOISE_NS if self._has_run_once else ONCE_NS)
            self._has_run_once |= changes.ran_ns > NOISE_NS
            self._standstill = None

    def _freezer(self) -> Cgroup | None:
        return self._cgroup if self._cgroup is not None and self._cgroup.can_freeze else None

    @property
    def has_exceeded_memory(self) -> bool:
        """True when the kernel ended it at the limit of its memory; False with no cgroup and after `kill`."""
        return self._cgroup is not None and self._cgroup.has_exceeded_memory

    @property
    def was_sacrificed(self) -> bool:
        """True when the kernel ended it for memory that others wanted, as far as a cgroup can tell."""
        return self._cgroup is not None and self._cgroup.was_sacrificed

    def kill(self) -> None:
        """End the process and, with its pid namespace, all that it started; safe to call again.

        The kernel ends what is in the namespace by itself, and may do so a moment later.
        """
        if self._is_supervised:
            self._process.terminate()
            self.wait(TERM_TIMEOUT_S)
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._cgroup is not None:
            self._cgroup.kill()
        self._process.wait()
        if self._cgroup is not None:
            self._cgroup.remove()
            self._cgroup = None
        if self._stage is not None:
            self._stage.rmdir()
            self._stage = None
