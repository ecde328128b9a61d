"""What the candidate's worker runs and sees: the program, its files, its device and its limits."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

import kernels
from node.devices import gpu_file, physical_gpu
from node.sandbox_spec import Limits, Mount, SandboxSpec, python_argv, python_mounts
from protocol.messages import EvaluationJob

_WORKER_FILES: Final = (
    "__init__.py",
    *(
        f"harness/{name}.py"
        for name in (
            "__init__",
            "device_memory",
            "inputs",
            "memory",
            "rooms",
            "shared_pool",
            "wire",
            "worker",
        )
    ),
)
_PROGRAM: Final = "from kernels.harness.worker import main; main(sys.argv[1:])"
_SOURCE: Final = "src"
"""Beside a tree: the copy of what the worker runs."""
_GPU_CONTROL: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")


def isolated_spec(tree: Path, job: EvaluationJob, descriptor: int, memory_bytes: int | None) -> SandboxSpec:
    """A worker that sees nothing but its own files, in places of their own."""
    interpreter, package = python_mounts(), Path(kernels.__file__).parent
    source, fork = Path("/quasar/src"), Path("/quasar/tree")
    return SandboxSpec(
        argv=_argv([mount.inside for mount in _packages(interpreter)], source, fork, job, descriptor),
        mounts=[
            *interpreter,
            # Not the rest: a submission could call our kernels in place of its own.
            *(Mount(host=package / name, inside=source / "kernels" / name) for name in _WORKER_FILES),
            Mount(host=tree, inside=fork),
        ],
        hidden=_whole_fla(interpreter),
        environment=_environment(job.device),
        devices=_devices(job.device),
        limits=replace(_limits(job.device), memory_bytes=memory_bytes),
    )


def spec_in_place(tree: Path, job: EvaluationJob, descriptor: int) -> SandboxSpec:
    """A worker that sees its files where they are on the host, and of the package what it runs, as a copy."""
    scratch, source = tree.parent / "scratch", tree.parent / _SOURCE
    scratch.mkdir(mode=0o700)
    for name in _WORKER_FILES:
        copy = source / "kernels" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(kernels.__file__).parent / name, copy)
    return SandboxSpec(
        argv=_argv([mount.host for mount in _packages(python_mounts())], source, tree, job, descriptor),
        environment={
            **_environment(job.device),
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "PATH": os.defpath,
            "TRITON_CACHE_DIR": str(scratch / "triton"),
        },
        scratch=scratch,
        limits=_limits(job.device),
    )


def confined_spec_in_place(tree: Path, job: EvaluationJob, descriptor: int) -> SandboxSpec:
    """The same with all that the worker may see named."""
    interpreter = python_mounts()
    seen = [*(mount.host for mount in interpreter), tree.parent / _SOURCE, tree]
    return replace(
        spec_in_place(tree, job, descriptor),
        mounts=[Mount(host=path, inside=path) for path in seen],
        hidden=[mount.host / "fla" for mount in _packages(interpreter)],
        devices=_devices(job.device),
    )


def _packages(interpreter: list[Mount]) -> list[Mount]:
    """The folders of installed packages: what is not where it is on the host."""
    return [mount for mount in interpreter if mount.inside != mount.host]


def _whole_fla(interpreter: list[Mount]) -> list[Path]:
    """Where fla-core would be seen with its forbidden operators; the tree has what submissions may use."""
    shown = [Path("/usr"), *(mount.host for mount in interpreter if mount.host == mount.inside)]
    found = []
    for mount in _packages(interpreter):
        if (mount.host / "fla").is_dir():
            found.append(mount.inside / "fla")
            # Packages in the interpreter's own prefix show there as well.
            if any(map(mount.host.is_relative_to, shown)):
                found.append(mount.host / "fla")
    return found


def _argv(packages: list[Path], source: Path, tree: Path, job: EvaluationJob, descriptor: int) -> list[str]:
    device = "cpu" if job.device == "cpu" else "cuda:0"
    return python_argv(_PROGRAM, [*map(str, packages), str(source)], str(descriptor), str(tree), device)


def _environment(device: str) -> dict[str, str]:
    is_gpu = device != "cpu"
    return {
        "TRITON_CACHE_DIR": "/tmp/triton",  # noqa: S108 - the sandbox's own
        "OMP_NUM_THREADS": "1",
        **({} if is_gpu else {"TRITON_INTERPRET": "1"}),
        **visible_gpu(device),
        **{name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if is_gpu and name in os.environ},
    }


def _limits(device: str) -> Limits:
    # CUDA reserves address space far beyond what it uses.
    return Limits() if device == "cpu" else Limits(data_bytes=None)


def _devices(device: str) -> list[Path]:
    if device == "cpu":
        return []
    file = gpu_file(_uuid(device))
    if file is None:
        numbered = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
        files = sorted(numbered, key=lambda path: int(path.name[6:]))
        number = physical_gpu(device) or ""
        file = files[int(number if number.isdigit() else device.partition(":")[2])]
    return [file, *(Path("/dev") / name for name in _GPU_CONTROL)]


def _uuid(device: str) -> str:
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def visible_gpu(device: str) -> dict[str, str]:
    """What makes the leased GPU the only one, number 0, of a worker.

    By its UUID: a number would count the GPUs whose files the worker sees, and it sees one.
    """
    return {"CUDA_VISIBLE_DEVICES": "" if device == "cpu" else _uuid(device)}
