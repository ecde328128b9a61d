"""Sandboxes below the unit of deploy/systemd; run by test_cgroups.py on a kernel of their own, as root."""

import signal
import sys
from pathlib import Path

from node.cgroups import LEAF, PREFIX
from tests.deploy.systemd import ROOT, running_systemd
from tests.waiting import until

CGROUPS = Path("/sys/fs/cgroup/system.slice")
NODE = """
import time
from node.cgroups import find_parent, make_room
from node.watchdog import ServiceManager
from tests.user_mode_linux.inside_cgroups import SWARM, start
make_room()
hog = start(SWARM, memory_mb=50)
hog.wait(60)
print(find_parent().name, hog.has_exceeded_memory, flush=True)
hog.kill()
kept = start("import time; time.sleep(3600)", memory_mb=100)
ServiceManager().tell("READY=1")
time.sleep(3600)
"""
"""What a validator does about cgroups; it starts one sandbox that exceeds its memory, and keeps another."""
HERE = """
[Service]
User=daemon
StateDirectory=
WorkingDirectory={root}
ExecStart=
ExecStart={python} {program}
StandardOutput=append:{log}
StandardError=append:{log}
Environment=PYTHONPATH={root} PYTHONDONTWRITEBYTECODE=1
RestartSec=0.2
"""


def test_a_node_has_sandboxes_in_its_unit(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(NODE)
    for folder in (program, tmp_path, tmp_path.parent, tmp_path.parent.parent):
        folder.chmod(0o755)
    log = tmp_path / "validator.log"
    with running_systemd(tmp_path) as systemd:
        values = {"root": ROOT, "python": sys.executable, "program": program, "log": log}
        unit = systemd.install("validator", HERE.format(**values))
        systemd.control("start", unit, check=False)
        assert log.read_text() == f"{unit} True\n", "a sandbox ends at its limit, and the node goes on"
        (cgroup,) = CGROUPS.rglob(unit)
        names = {path.name for path in cgroup.iterdir() if path.is_dir()}
        assert LEAF in names
        assert len([name for name in names if name.startswith(PREFIX)]) == 1
        assert systemd.shown(unit)["NRestarts"] == "0"

        systemd.signal(unit, signal.SIGKILL)
        until(
            lambda: log.read_text().count("True") == 2, lambda: f"it does not start again: {log.read_text()}"
        )
        until(lambda: systemd.shown(unit)["ActiveState"] == "active", lambda: "it is not ready")
        left = [path for path in cgroup.iterdir() if path.name.startswith(PREFIX)]
        assert len(left) == 1, "what the killed node had left is gone"

        systemd.control("stop", unit)
        until(lambda: not cgroup.exists(), lambda: "the unit's cgroup stays")
