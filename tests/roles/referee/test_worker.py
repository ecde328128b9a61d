"""How a worker ends, and the GPU that it sees."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kernels.harness.session import CandidateFailed
from node.sandbox import detect_tier
from node.sandbox_spec import Mount, SandboxSpec, SandboxTier
from protocol.verdicts import Status
from roles.referee import worker, worker_spec
from roles.referee.stages import Ended
from roles.referee.worker import Worker, running_worker
from roles.referee.worker_spec import visible_gpu
from tests.roles.referee.jobs import job_in


def ending_at_once(specify: Callable[..., SandboxSpec]) -> Callable[..., SandboxSpec]:
    """Return what specifies another program than the worker."""
    return lambda *arguments: replace(specify(*arguments), argv=["/bin/false"])


def on_a_gpu_that_does_not_start(specify: Callable[..., SandboxSpec]) -> Callable[..., SandboxSpec]:
    """Return what has the worker use a GPU, of which it is shown none."""

    def told(*arguments: Any) -> SandboxSpec:
        spec = specify(*arguments)
        assert spec.argv[-1] == "cpu"
        return replace(spec, argv=[*spec.argv[:-1], "cuda:0"])

    return told


def test_a_worker_is_told_its_gpu_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    # The number would be 1 out here, and nothing is number 1 where a single GPU can be seen.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=f"of {device}")
    )
    assert visible_gpu("cuda:0") == {"CUDA_VISIBLE_DEVICES": "GPU-of cuda:0"}
    assert visible_gpu("cpu") == {"CUDA_VISIBLE_DEVICES": ""}


def test_the_whole_fla_is_hidden_wherever_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a virtual environment packages lie in the interpreter's prefix, and show there as well."""
    prefix, elsewhere = tmp_path / "prefix", tmp_path / "elsewhere"
    inside, outside = prefix / "lib" / "site-packages", elsewhere / "site-packages"
    for packages in (inside, outside):
        (packages / "fla").mkdir(parents=True)
    mounts = [
        Mount(host=prefix, inside=prefix),
        Mount(host=inside, inside=Path("/quasar/site0")),
        Mount(host=outside, inside=Path("/quasar/site1")),
        Mount(host=tmp_path, inside=Path("/quasar/site2")),
    ]
    monkeypatch.setattr(worker_spec, "python_mounts", lambda: mounts)
    spec = worker_spec.isolated_spec(tmp_path / "tree", job_in(tmp_path), 3, None)
    assert spec.hidden == [Path("/quasar/site0/fla"), inside / "fla", Path("/quasar/site1/fla")]


@pytest.mark.parametrize(
    ("has_exceeded", "was_sacrificed", "expected"),
    [
        (False, False, CandidateFailed("crash", "the worker broke off")),
        (True, False, CandidateFailed("memory", "it held more than 8,192 MiB of the host's memory")),
        (
            False,
            True,
            Ended(Status.INFRASTRUCTURE, "the host ran out of memory and ended the submission's worker"),
        ),
    ],
)
def test_a_worker_that_broke_off_is_explained_by_what_the_kernel_did(
    has_exceeded: bool, was_sacrificed: bool, expected: CandidateFailed | Ended
) -> None:
    process = SimpleNamespace(has_exceeded_memory=has_exceeded, was_sacrificed=was_sacrificed)
    worker = Worker(contestant=None, log=None, process=process, memory_limit_bytes=2**33)  # type: ignore[arg-type]
    explained = worker.explained(CandidateFailed("crash", "the worker broke off"))
    assert (type(explained), explained.args, vars(explained)) == (
        type(expected),
        expected.args,
        vars(expected),
    )
    late = CandidateFailed("timeout", "the worker did not answer before the deadline")
    assert worker.explained(late) is late


@pytest.mark.parametrize("tier", [SandboxTier.NONE, detect_tier()])
@pytest.mark.parametrize("broken", [ending_at_once, on_a_gpu_that_does_not_start])
def test_a_worker_that_cannot_be_started_is_nobodys_fault(
    broken: Callable[..., Any], tier: SandboxTier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too few processes on the host for one more namespace, for one."""
    for name in ("spec_in_place", "confined_spec_in_place", "isolated_spec"):
        monkeypatch.setattr(worker, name, broken(getattr(worker, name)))
    with (
        pytest.raises(Ended, match=r"^no worker could be started: the worker broke off") as caught,
        running_worker({}, job_in(tmp_path), tier, lambda: 120.0) as started,
    ):
        started.contestant.wait_ready()
    assert caught.value.status is Status.INFRASTRUCTURE
