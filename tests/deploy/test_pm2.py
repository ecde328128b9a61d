"""The ecosystem file of deploy/ under a real pm2: start, kill, stop, and what stays down."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import Service
from tests.requirements import missing
from tests.waiting import until

ROOT = Path(__file__).parents[2]
ECOSYSTEM = ROOT / "deploy" / "ecosystem.config.js"
INSTALLED = ROOT / ".cache" / "pm2" / "node_modules" / ".bin" / "pm2"

pytestmark = pytest.mark.timeout(240)


@dataclass
class Pm2:
    """A pm2 daemon of its own."""

    program: str
    home: Path

    def run(self, *words: str, **env: str) -> str:
        """Run one command."""
        done = subprocess.run(
            [self.program, *words],
            env=os.environ | {"PM2_HOME": str(self.home), "PM2_DISCRETE_MODE": "true"} | env,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, role: str, config: Path) -> None:
        """Start one role of the ecosystem file."""
        env = {"PM2_CONFIG_FILE": str(config), "PM2_CWD": str(config.parent)}
        self.run("start", str(ECOSYSTEM), "--only", f"quasar-{role}", **env)

    def shown(self, role: str) -> dict[str, Any]:
        """State of a role's process."""
        listing = self.run("jlist")
        apps = {app["name"]: app for app in json.loads(listing[listing.index("[{") :])}
        found = apps[f"quasar-{role}"]
        environment = found["pm2_env"]
        return {
            "pid": found["pid"],
            "status": environment["status"],
            "restarts": environment["restart_time"],
            "exit_code": environment.get("exit_code"),
        }

    def log(self, role: str) -> str:
        """What a role has printed."""
        return "".join(path.read_text() for path in (self.home / "logs").glob(f"quasar-{role}-*.log"))


@pytest.fixture
def pm2(tmp_path: Path) -> Iterator[Pm2]:
    """pm2, from where `npm install --prefix .cache/pm2 pm2` puts it or from the PATH."""
    program = str(INSTALLED) if INSTALLED.exists() else shutil.which("pm2")
    if program is None:
        missing("pm2 is missing: npm install --prefix .cache/pm2 pm2")
    started = Pm2(program, tmp_path / "pm2")
    yield started
    started.run("kill")


def test_start_kill_and_stop(pm2: Pm2, service: Service) -> None:
    def is_up() -> bool:
        return pm2.log("api").count("starting") > pm2.shown("api")["restarts"] and _answers(service.api_url)

    pm2.start("api", service.api_config)
    until(is_up, lambda: pm2.log("api"))
    first = pm2.shown("api")
    assert (first["status"], first["restarts"]) == ("online", 0)

    os.kill(first["pid"], signal.SIGKILL)
    until(lambda: pm2.shown("api")["restarts"] == 1, lambda: str(pm2.shown("api")))
    until(is_up, lambda: pm2.log("api"))
    assert pm2.shown("api")["pid"] != first["pid"]

    pm2.run("stop", "quasar-api")
    assert pm2.shown("api")["status"] == "stopped"
    # Asked to stop, not killed; pm2 writes what a process says in its own time.
    until(lambda: "stopping" in pm2.log("api"), lambda: pm2.log("api"))
    assert "Traceback" not in pm2.log("api")


def test_what_a_restart_cannot_cure_stays_down(pm2: Pm2, service: Service) -> None:
    pm2.start("miner", service.stranger_config)
    until(lambda: pm2.shown("miner")["exit_code"] == 77, lambda: str(pm2.shown("miner")))
    time.sleep(4.0)  # well above the first delay of a restart
    shown = pm2.shown("miner")
    # pm2 calls it "waiting restart", and waits for ever.
    assert (shown["pid"], shown["restarts"]) == (0, 0)
    assert "not registered" in pm2.log("miner")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
