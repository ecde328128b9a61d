"""Shared test set-up: Triton runs in its interpreter wherever there is no GPU."""

import os
import shutil

import pytest

# Before anything imports Triton: the variable is read once, at import.
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what kills processes for minutes, unless it is asked for by its marker."""
    if "chaos" in str(config.getoption("markexpr")):
        return
    chaotic = [item for item in items if item.get_closest_marker("chaos")]
    config.hook.pytest_deselected(items=chaotic)
    items[:] = [item for item in items if item not in chaotic]
