"""A real systemd, PID 1 of its own namespaces, that reads the shipped unit."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.requirements import missing
from tests.waiting import until

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "quasar-node@.service"
SYSTEMD = Path("/lib/systemd/systemd")
NAMESPACES = ("unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child")
TARGETS = ("default", "sysinit", "basic", "shutdown", "network-online", "multi-user")
BOOT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
# Refused where this very hierarchy is there already.
mount -t cgroup2 cgroup2 /sys/fs/cgroup || grep -q ' /sys/fs/cgroup cgroup2 ' /proc/mounts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/quasar-node 2>/dev/null || true
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH="$1" {systemd} --system --log-target=console
"""


@dataclass
class Systemd:
    """A running systemd and the units that it reads."""

    pid: int
    units: Path
    folder: Path

    def control(self, *words: str, check: bool = True) -> str:
        """Run systemctl inside the namespaces."""
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "systemctl", *words]
        done = subprocess.run(inside, capture_output=True, text=True, timeout=90)
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def shown(self, unit: str) -> dict[str, str]:
        """State of a unit."""
        names = "ActiveState,SubState,Result,NRestarts,MainPID,ExecMainStatus"
        lines = self.control("show", unit, "--property", names).splitlines()
        return dict(line.split("=", 1) for line in lines)

    def install(self, role: str, drop_in: str) -> str:
        """The shipped unit for a role, with lines that take the place of some of its own; its name."""
        unit = f"quasar-node@{role}.service"
        (self.units / UNIT.name).write_text(UNIT.read_text())
        folder = self.units / f"{unit}.d"
        folder.mkdir()
        (folder / "here.conf").write_text(drop_in)
        self.control("daemon-reload")
        return unit

    def signal(self, unit: str, number: signal.Signals) -> None:
        """Send a signal to the main process alone."""
        self.control("kill", f"--signal={number.name}", "--kill-who=main", unit)


def require_systemd() -> None:
    """Skip where systemd cannot run as PID 1 of a namespace; under continuous integration fail."""
    lacking = [name for name in ("unshare", "nsenter", "systemctl") if shutil.which(name) is None]
    if not SYSTEMD.exists() or lacking or os.geteuid() != 0:
        missing(f"needs root, {SYSTEMD} and {', '.join(lacking) or 'nothing else'}")


@contextmanager
def running_systemd(folder: Path) -> Iterator[Systemd]:
    """A systemd of its own; whatever it has started ends with it. Its files are in `folder`."""
    require_systemd()
    units = folder / "units"
    units.mkdir()
    for target in TARGETS:
        (units / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    with (folder / "systemd.log").open("wb") as log:
        process = subprocess.Popen(
            [*NAMESPACES, "bash", "-c", BOOT.format(systemd=SYSTEMD), "bash", str(units)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        found = until(lambda: _systemd_below(process.pid), lambda: "systemd did not start")
        running = Systemd(found, units, folder)
        until(
            lambda: running.control("is-system-running", check=False) == "running",
            lambda: "systemd is not up",
        )
        yield running
    finally:
        process.kill()
        process.wait()


def _systemd_below(pid: int) -> int | None:
    """The child, once it is no shell any more that still mounts what systemctl is to see."""
    child = Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()
    return int(child) if child and Path(f"/proc/{child}/comm").read_text() == "systemd\n" else None
