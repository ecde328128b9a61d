"""Shared test set-up: Triton runs in its interpreter wherever there is no GPU."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, settings

from node.sandbox import detect_tier
from node.sandbox_spec import SandboxTier
from protocol.verdicts import Isolation
from tests.requirements import missing

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


@pytest.fixture
def sandbox() -> None:
    """For tests that have a submission judged."""
    if detect_tier() is SandboxTier.NONE:
        missing("this host offers no sandbox")


@pytest.fixture
def bubblewrap() -> None:
    """For tests of hostile code: without it none runs, not even ours."""
    if not detect_tier().suffices(Isolation.TO_SCORE):
        missing("bubblewrap does not run here")
