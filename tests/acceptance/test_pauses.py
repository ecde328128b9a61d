"""The check of pauses in a short form: an honest worker stands still, and nobody would accuse it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.usefixtures("bubblewrap")
def test_an_honest_worker_stands_still_between_its_trials() -> None:
    pauses = [sys.executable, "-m", "benchmarks.referee.pauses", "--device", "cpu"]
    done = subprocess.run(
        [*pauses, "--cycles", "3", "--cgroup"], cwd=ROOT, capture_output=True, text=True, timeout=170
    )
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    stopped = report["stopped"]
    assert (stopped["failure"], stopped["accused"]) == (None, []), report
    # One more, once it is ready.
    assert stopped["pauses"] == 4
    assert set(stopped["pause_ms"]) == {"median", "99 %", "max"}
    assert (stopped["started"], stopped["gone"]) == (0, 0)
    assert "T" in stopped["states"]
    assert report["frozen"].get("failure") is None
    assert done.returncode == 0
