"""The unit of deploy/systemd under a real systemd, PID 1 of its own namespaces: start, hang, kill, stop."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.conftest import ROLES, Service

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy" / "systemd" / "quasar-node@.service"
SYSTEMD = Path("/lib/systemd/systemd")
NAMESPACES = ("unshare", "--mount", "--pid", "--cgroup", "--fork", "--kill-child")
TARGETS = ("default", "sysinit", "basic", "shutdown", "network-online", "multi-user")
BOOT = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib/quasar-node 2>/dev/null || true
exec env -i PATH="$PATH" container=test SYSTEMD_UNIT_PATH="$1" {systemd} --system --log-target=console
"""
HERE = """
[Service]
User=
StateDirectory=
WorkingDirectory={folder}
ExecStart=
ExecStart={python} -m roles --role {role} --config {config}
StandardOutput=append:{log}
StandardError=append:{log}
RestartSec=0.2
WatchdogSec=4
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

    def install(self, role: str, config: Path) -> str:
        """The shipped unit, with this machine's paths; its name."""
        unit = f"quasar-node@{role}.service"
        (self.units / UNIT.name).write_text(UNIT.read_text())
        drop_in = self.units / f"{unit}.d"
        drop_in.mkdir()
        values = {"folder": self.folder, "python": sys.executable, "role": role, "config": config}
        (drop_in / "here.conf").write_text(HERE.format(**values, log=self.folder / f"{role}.log"))
        self.control("daemon-reload")
        return unit

    def signal(self, unit: str, number: signal.Signals) -> None:
        """Send a signal to the main process alone."""
        self.control("kill", f"--signal={number.name}", "--kill-who=main", unit)


def require_systemd() -> None:
    """Skip where systemd cannot run as PID 1 of a namespace; under continuous integration fail."""
    lacking = [name for name in ("unshare", "nsenter", "systemctl") if shutil.which(name) is None]
    if not SYSTEMD.exists() or lacking or os.geteuid() != 0:
        sentence = f"needs root, {SYSTEMD} and {', '.join(lacking) or 'nothing else'}"
        pytest.fail(sentence) if os.environ.get("CI") else pytest.skip(sentence)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    """A systemd of its own; whatever it has started ends with it."""
    require_systemd()
    units = tmp_path / "units"
    units.mkdir()
    for target in TARGETS:
        (units / f"{target}.target").write_text(f"[Unit]\nDescription={target}\n")
    with (tmp_path / "systemd.log").open("wb") as log:
        process = subprocess.Popen(
            [*NAMESPACES, "bash", "-c", BOOT.format(systemd=SYSTEMD), "bash", str(units)],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        found = until(lambda: _child(process.pid), "systemd did not start")
        running = Systemd(int(str(found)), units, tmp_path)
        until(lambda: running.control("is-system-running", check=False) == "running", "systemd is not up")
        yield running
    finally:
        process.kill()
        process.wait()


def _child(pid: int) -> str:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().strip()


def until(condition: Callable[[], object], what: str, timeout_s: float = 60.0) -> object:
    """Wait for something true."""
    end_s = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end_s, what
        time.sleep(0.1)
    return found


def restarted(systemd: Systemd, unit: str, role: str, *, times: int) -> dict[str, str]:
    """Wait until the unit is active after so many restarts."""

    def is_back() -> bool:
        shown = systemd.shown(unit)
        return shown["NRestarts"] == str(times) and shown["ActiveState"] == "active"

    log = systemd.folder / f"{role}.log"
    until(is_back, f"{systemd.shown(unit)}; {log.read_text()[-2000:]}")
    return systemd.shown(unit)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ROLES)
def test_start_kill_hang_and_stop(systemd: Systemd, service: Service, role: str) -> None:
    unit = systemd.install(role, service.configs[role])
    systemd.control("start", unit)
    started = systemd.shown(unit)
    assert (started["ActiveState"], started["NRestarts"]) == ("active", "0"), "start waits for READY=1"

    systemd.signal(unit, signal.SIGKILL)
    killed = restarted(systemd, unit, role, times=1)
    assert killed["MainPID"] != started["MainPID"]

    systemd.signal(unit, signal.SIGSTOP)
    hung = restarted(systemd, unit, role, times=2)
    assert hung["MainPID"] != killed["MainPID"]

    systemd.control("stop", unit)
    stopped = systemd.shown(unit)
    assert stopped["ActiveState"] == "inactive", "a stop is no failure"
    assert (stopped["Result"], stopped["ExecMainStatus"]) == ("success", "0")
    assert systemd.control("show", unit, "--property", "ControlGroup") == "ControlGroup=", "nothing is left"
    assert "Traceback" not in (systemd.folder / f"{role}.log").read_text()


@pytest.mark.timeout(120)
def test_what_a_restart_cannot_cure_stays_down(systemd: Systemd, service: Service) -> None:
    unit = systemd.install("miner", service.stranger_config)
    systemd.control("start", unit, check=False)
    until(lambda: systemd.shown(unit)["ActiveState"] == "failed", "the stranger goes on")
    time.sleep(1.0)
    shown = systemd.shown(unit)
    assert (shown["ActiveState"], shown["ExecMainStatus"], shown["NRestarts"]) == ("failed", "77", "0")
    assert "not registered" in (systemd.folder / "miner.log").read_text()


def test_the_unit_is_understood_without_complaint(systemd: Systemd, service: Service) -> None:
    systemd.install("api", service.api_config)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(systemd.units / "quasar-node@api.service")],
        env=os.environ | {"SYSTEMD_UNIT_PATH": str(systemd.units)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "quasar-node" not in verified.stderr, verified.stderr
