"""The unit of deploy/systemd under a real systemd: start, hang, kill, stop."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import ROLES, Service
from tests.deploy.systemd import Systemd, running_systemd
from tests.waiting import until

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
WatchdogSec=15
"""


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with running_systemd(tmp_path) as running:
        yield running


def install(systemd: Systemd, role: str, config: Path) -> str:
    """The unit with this machine's paths; its name."""
    values = {"folder": systemd.folder, "python": sys.executable, "role": role, "config": config}
    return systemd.install(role, HERE.format(**values, log=systemd.folder / f"{role}.log"))


def restarted(systemd: Systemd, unit: str, role: str, *, times: int) -> dict[str, str]:
    """Wait until the unit is active after so many restarts."""

    def is_back() -> bool:
        shown = systemd.shown(unit)
        return shown["NRestarts"] == str(times) and shown["ActiveState"] == "active"

    log = systemd.folder / f"{role}.log"
    until(is_back, lambda: f"{systemd.shown(unit)}; {log.read_text()[-2000:]}", timeout_s=90)
    return systemd.shown(unit)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ROLES)
def test_start_kill_hang_and_stop(systemd: Systemd, service: Service, role: str) -> None:
    unit = install(systemd, role, service.configs[role])
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
    unit = install(systemd, "miner", service.stranger_config)
    systemd.control("start", unit, check=False)
    until(lambda: systemd.shown(unit)["ActiveState"] == "failed", lambda: "the stranger goes on")
    time.sleep(1.0)
    shown = systemd.shown(unit)
    assert (shown["ActiveState"], shown["ExecMainStatus"], shown["NRestarts"]) == ("failed", "77", "0")
    assert "not registered" in (systemd.folder / "miner.log").read_text()


def test_the_unit_is_understood_without_complaint(systemd: Systemd, service: Service) -> None:
    install(systemd, "api", service.api_config)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(systemd.units / "quasar-node@api.service")],
        env=os.environ | {"SYSTEMD_UNIT_PATH": str(systemd.units)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "quasar-node" not in verified.stderr, verified.stderr
