"""Limits for a sandbox as a whole: what needs them runs on a kernel with cgroup v2, the rest here."""

from pathlib import Path

import pytest

from tests.user_mode_linux import run_inside


@pytest.mark.timeout(180)
def test_sandboxes_in_cgroups(tmp_path: Path) -> None:
    run_inside("tests/node/inside_cgroups.py", folder=tmp_path, timeout_s=150)
