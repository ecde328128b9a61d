"""The event-loop process of every role stays light."""

import json
import subprocess
import sys

import pytest

from roles.cli import ROLES

HEAVY = ("torch", "triton", "transformers", "fla")


@pytest.mark.parametrize("role", ROLES)
def test_wiring_loads_no_heavy_library(role: str) -> None:
    program = (
        f"import json, sys, roles.cli, roles.{role}.wiring; "
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=280, check=True
    )
    assert json.loads(result.stdout) == []
