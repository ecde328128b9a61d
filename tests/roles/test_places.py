"""Where a validator's referees run, as the settings say, and one on a real Ray cluster."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kernels.export import export_files
from node.devices import resolve_device
from node.settings import load_settings
from node.settings_model import Settings
from protocol.errors import ConfigError
from protocol.verdicts import Status
from roles import places
from roles.commands.doctor import devices_finding, executor_finding
from roles.evaluation import Referee
from roles.places import places_of
from tests.adversarial.conftest import laid_out
from tests.ray_cluster import ray_cluster

RAY = {"backend": "ray", "address": "127.0.0.1:6379", "evaluations": 2}


def settings_of(**tables: Any) -> Settings:
    return Settings.model_validate({"node": {"device": "cpu"}, **tables})


def test_the_device_of_the_node_is_the_default() -> None:
    [place] = places_of(settings_of())
    assert (place.name, place.device, place.is_here) == ("cpu", "cpu", True)
    assert place.argv[-2:] == ("-m", "roles.referee")


def test_devices_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "resolve_device", lambda chosen: "cuda:0" if chosen == "cuda" else chosen)
    found = places_of(settings_of(evaluation={"devices": ("cuda:1", "cuda")}))
    assert [place.device for place in found] == ["cuda:1", "cuda:0"]
    with pytest.raises(ConfigError, match=r"devices \['cuda', 'cuda:0'\]: one of them is named twice"):
        places_of(settings_of(evaluation={"devices": ("cuda", "cuda:0")}))


@pytest.fixture
def one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose second GPU has not come up."""
    (tmp_path / "nvidia0").touch()
    found = partial(resolve_device, dev=tmp_path, environ={"PATH": "/nowhere"})
    monkeypatch.setattr(places, "resolve_device", found)


@pytest.mark.usefixtures("one_gpu")
def test_a_missing_gpu_among_several_may_come_back() -> None:
    found = places_of(settings_of(evaluation={"devices": ("cuda:0", "cuda:1")}))
    assert [(place.device, place.is_missing) for place in found] == [("cuda:0", False), ("cuda:1", True)]
    finding = devices_finding(settings_of(evaluation={"devices": ("cuda:0", "cuda:1")}))
    assert (finding.result, finding.detail) == ("warning", "cuda:1: not there")
    assert devices_finding(settings_of(evaluation={"devices": ("cuda:0",)})).result == "ok"


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize(
    ("devices", "words"),
    [
        (("cuda:1",), 'device "cuda:1" but only 1 CUDA GPU found'),
        (("cuda:1", "cuda:2"), 'device "cuda:1" but only 1 CUDA GPU found'),
        (("cuda:0", "cuda:1", "cuda:1"), "named twice"),
        (("cuda:0", "gpu1"), "'gpu1' is unknown"),
    ],
)
def test_what_cannot_come_back_is_refused(devices: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        places_of(settings_of(evaluation={"devices": devices}))
    assert devices_finding(settings_of(evaluation={"devices": devices})).result == "error"


def test_evaluations_on_other_hosts_have_a_gpu_each() -> None:
    found = places_of(settings_of(executor=RAY, evaluation={"memory_limit_mb": 4096}))
    assert [place.name for place in found] == ["ray:0", "ray:1"]
    assert {place.device for place in found} == {"cuda:0"}
    assert found[0].argv[-4:] == ("node.ray_run", "127.0.0.1:6379", "1", "roles.referee")


@pytest.mark.parametrize(
    ("evaluation", "words"),
    [
        ({}, "needs \\[evaluation\\] memory_limit_mb"),
        ({"memory_limit_mb": 4096, "devices": ("cuda:1",)}, "devices \\['cuda:1'\\] are of this host"),
    ],
)
def test_what_only_this_host_knows_is_refused(evaluation: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        places_of(settings_of(executor=RAY, evaluation=evaluation))


@pytest.mark.parametrize(
    "address", ["here", "ray://host:10001", "host:", "host:0", "host:65536", ":6379", "two hosts:6379"]
)
def test_an_address_that_is_none_is_named(address: str) -> None:
    said = "auto or host:port is expected, with a port from 1 to 65535"
    with pytest.raises(ConfigError, match=rf"\[executor\] address = .*{address}.*: .*{said}"):
        load_settings({}, config_file=None, env={"QUASAR_EXECUTOR__ADDRESS": address})


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r'pip install "quasar-node\[ray\]"'):
        places_of(settings_of(executor=RAY))


@pytest.mark.usefixtures("sandbox")
async def test_a_submission_is_judged_on_another_host(tmp_path: Path) -> None:
    source = laid_out(tmp_path, export_files("chunk"), "")
    with ray_cluster() as address:
        settings = settings_of(
            node={"device": "cpu", "data_dir": str(tmp_path / "data")},
            executor={"backend": "ray", "address": address, "device": "cpu"},
            evaluation={"memory_limit_mb": 4096, "trials_min": 1, "trials_max": 1, "max_sequence_length": 64},
        )
        [place] = places_of(settings)
        stages: list[str] = []
        referee = Referee(settings, tmp_path / "data", place=place, on_stage=stages.append)
        report = await referee.evaluate(source, target_sequence_length=100_000, claimed_tokens_per_sec=None)
        assert report.figures.status is Status.PASSED, report.figures.evidence
        assert stages[0] == "fetch"
        assert len(stages) > 3
        assert (await executor_finding(settings)).result == "ok"
    assert not await referee.is_device_working()
    finding = await executor_finding(settings)
    assert finding.result == "error"
    assert address in finding.detail
