"""Shared test set-up: Triton runs in its interpreter wherever there is no GPU."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

# Before anything imports Triton: the variable is read once, at import.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Under continuous integration hypothesis does so by itself: how fast an example is depends on the machine.
if settings.get_current_profile_name() == "default":
    settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("unhurried")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what kills processes for minutes, unless it is asked for by its marker."""
    if "chaos" in str(config.getoption("markexpr")):
        return
    chaotic = [item for item in items if item.get_closest_marker("chaos")]
    config.hook.pytest_deselected(items=chaotic)
    items[:] = [item for item in items if item not in chaotic]
