"""What the doctor says about the sandbox; its other checks are run with the pages that name it."""

import os
import shutil

import pytest

from node import cgroups, sandbox
from node.sandbox_spec import SandboxTier
from node.settings_model import ChainSection, Settings
from protocol.errors import CgroupUnavailable
from roles.commands.doctor import sandbox_finding


def with_tier(monkeypatch: pytest.MonkeyPatch, tier: SandboxTier) -> None:
    monkeypatch.setattr(sandbox, "detect_tier", lambda: tier)


def test_the_best_tier_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_tier(monkeypatch, SandboxTier.CGROUP)
    finding = sandbox_finding(Settings())
    assert (finding.result, finding.fix) == ("ok", "")
    assert SandboxTier.CGROUP.value in finding.detail


def test_what_is_in_the_way_of_a_cgroup_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with_tier(monkeypatch, SandboxTier.BWRAP)

    def refuse() -> None:
        raise CgroupUnavailable("the hierarchy is upside down", "turn it round")

    monkeypatch.setattr(cgroups, "find_parent", refuse)
    finding = sandbox_finding(Settings())
    assert finding.result == "warning"
    assert finding.detail.endswith("the hierarchy is upside down")
    assert finding.fix == "turn it round"


@pytest.mark.parametrize(
    ("network", "is_installed", "result", "fix"),
    [
        ("test", False, "error", "apt-get install bubblewrap"),
        ("test", True, "error", "allow user namespaces"),
        ("local", False, "warning", "apt-get install bubblewrap"),
    ],
)
def test_without_a_sandbox_the_fix_depends_on_what_is_there(
    network: str, is_installed: bool, result: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_tier(monkeypatch, SandboxTier.NONE)
    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/bwrap" if is_installed else None)
    settings = Settings(chain=ChainSection(network=network))
    finding = sandbox_finding(settings)
    assert finding.result == result
    assert fix in finding.fix


def test_what_serves_to_verify_is_too_little_for_a_validator(monkeypatch: pytest.MonkeyPatch) -> None:
    with_tier(monkeypatch, SandboxTier.LANDLOCK)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    finding = sandbox_finding(Settings(chain=ChainSection(network="test")))
    assert finding.result == "warning"
    assert "enough to verify kernels, too little for a validator" in finding.detail
    assert finding.fix == "apt-get install bubblewrap"


@pytest.mark.parametrize(("user", "is_told"), [(0, True), (1000, False)])
def test_root_is_told_of_other_users(user: int, is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with_tier(monkeypatch, SandboxTier.NONE)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    assert ("another user than root" in sandbox_finding(Settings()).fix) is is_told
