"""The short devnet, run as a user runs it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import command_lines
from tests.waiting import until

pytestmark = [pytest.mark.devnet, pytest.mark.timeout(600)]


def _group_members(root: Path) -> list[str]:
    """Return the command lines of running processes that name `root`."""
    return [
        line.replace(b"\0", b" ").decode(errors="replace")
        for pid, line in command_lines().items()
        if pid != os.getpid() and str(root).encode() in line
    ]


def _assert_all_end(root: Path) -> None:
    """Workers end by themselves, a moment after their parents."""
    until(lambda: not _group_members(root), lambda: _group_members(root))


def test_short_devnet_pays_the_correct_miners_and_excludes_the_wrong_one(tmp_path: Path) -> None:
    root = tmp_path / "devnet"
    result = subprocess.run(
        [sys.executable, "-m", "roles", "devnet", "--short", "--json", "--dir", str(root), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=540,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == 0, result.stderr[-6000:]
    report = json.loads(result.stdout)

    assert [row["miner"] for row in report["ranking"]] == ["fast", "slow"]
    verdicts = {verdict["miner"]: verdict for verdict in report["verdicts"]}
    assert verdicts["fast"]["status"] == "passed"
    assert verdicts["slow"]["status"] == "passed"
    assert verdicts["wrong"]["status"] == "wrong_output"
    assert verdicts["fast"]["measured_tokens_per_sec"] > verdicts["slow"]["measured_tokens_per_sec"]

    weights = report["weights"]
    fast, slow = (weights[verdicts[name]["miner_hotkey"]] for name in ("fast", "slow"))
    assert fast / slow == pytest.approx(60 / 25, abs=0.01)
    assert verdicts["wrong"]["miner_hotkey"] not in weights
    assert sum(weights.values()) == pytest.approx(1.0)
    assert report["api"].startswith("http://127.0.0.1:")
    assert report["seconds"] > 0
    _assert_all_end(root)


def test_terminated_devnet_leaves_no_process_behind(tmp_path: Path) -> None:
    root = tmp_path / "devnet"
    process = subprocess.Popen(
        [sys.executable, "-m", "roles", "devnet", "--short", "--dir", str(root), "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "validator started" in line:
                break
        else:
            pytest.fail("the devnet never started its processes")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143
    _assert_all_end(root)


def test_folder_that_is_not_a_devnet_is_left_alone(tmp_path: Path) -> None:
    keepsake = tmp_path / "thesis.txt"
    keepsake.write_text("years of work")
    result = subprocess.run(
        [sys.executable, "-m", "roles", "devnet", "--short", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == 2
    assert str(tmp_path) in result.stderr
    assert "Traceback" not in result.stderr
    assert keepsake.read_text() == "years of work"
