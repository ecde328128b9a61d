"""Limits for a sandbox as a whole, on a kernel with cgroup v2: the sandbox, systemd's unit, the referee."""

from pathlib import Path

import pytest

from tests.user_mode_linux.kernel import run_inside

INSIDE = ("inside_cgroups", "inside_delegation", "inside_swarm")


@pytest.mark.timeout(300)
def test_sandboxes_in_cgroups(tmp_path: Path) -> None:
    run_inside(*(f"tests/user_mode_linux/{name}.py" for name in INSIDE), folder=tmp_path, timeout_s=270)
