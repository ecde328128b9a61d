"""Start the candidate's worker in the sandbox, with its tree laid over the pinned base."""

import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import torch

import kernels
from kernels.export import export_files
from kernels.fork_base import write_fla_base
from kernels.harness.session import Session
from kernels.harness.wire import socket_pair
from node.devices import gpu_file, physical_gpu
from node.sandbox import (
    Limits,
    Mount,
    SandboxSpec,
    SandboxTier,
    detect_tier,
    python_argv,
    python_mounts,
    start_sandboxed,
    start_unsandboxed,
)
from node.sandboxed_process import SandboxedProcess
from protocol.errors import SandboxUnavailable
from protocol.forks import TARGET_DIR
from protocol.messages import EvaluationJob
from roles.referee.contestant import Contestant
from roles.referee.stages import printable

LOG_TAIL_BYTES: Final = 4000
FOLDER_PREFIX: Final = "run-"
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
_GPU_CONTROL: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools")


@dataclass(frozen=True, slots=True)
class Worker:
    """A started worker and what it printed."""

    contestant: Contestant
    log: IO[bytes]

    def log_tail(self) -> str:
        """Return the end of what the worker printed, in printable characters."""
        size = self.log.seek(0, os.SEEK_END)
        self.log.seek(max(0, size - LOG_TAIL_BYTES))
        return printable(self.log.read().decode("utf-8", errors="replace"), keep="\n")


def choose_tier(job: EvaluationJob) -> SandboxTier:
    """Return the isolation that this evaluation gets.

    Raises:
        SandboxUnavailable: there is none, and the job demands one.
    """
    tier = detect_tier()
    if tier is SandboxTier.NONE and job.require_sandbox:
        raise SandboxUnavailable(
            "this host offers no sandbox, and hostile code runs only in one: apt-get install bubblewrap"
        )
    return tier


@contextmanager
def running_worker(
    files: Mapping[str, str],
    job: EvaluationJob,
    tier: SandboxTier,
    deadline_s: Callable[[], float],
    *,
    triton_cache: Path | None = None,
) -> Iterator[Worker]:
    """Run a worker for the files of `fla/ops/quasar/`; everything of it is gone afterwards.

    `triton_cache`, of a worker without a sandbox alone, is a folder that stays.
    """
    with _own_folder(Path(job.work_dir)) as folder, tempfile.TemporaryFile() as log:
        tree = folder / "tree"
        _lay_out(tree, files)
        ours, theirs = socket_pair()
        with ours:
            with theirs:
                process = _start(tree, job, tier, theirs, log, triton_cache or folder / "triton")
            session = Session(ours, deadline_s=deadline_s, device=torch.device(job.device))
            try:
                yield Worker(Contestant(session, pause=process.pause, resume=process.resume), log)
            finally:
                process.kill()
                session.close()


@contextmanager
def running_yardstick(job: EvaluationJob, deadline_s: Callable[[], float]) -> Iterator[Worker]:
    """Run the yardstick's worker: our own code, which needs no sandbox and keeps what it has compiled."""
    files, cache = export_files("chunk"), Path(job.work_dir) / "yardstick"
    with running_worker(files, job, SandboxTier.NONE, deadline_s, triton_cache=cache) as worker:
        yield worker


@contextmanager
def _own_folder(work_dir: Path) -> Iterator[Path]:
    """A new folder whose lock says, for as long as this process lives, that it is in use."""
    with _locked(work_dir):
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=work_dir))
        lock = _lock_folder(folder, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock_folder(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _lock_folder(folder: Path, how: int) -> int:
    """Return the descriptor that holds a folder's lock; BlockingIOError with LOCK_NB when it is taken."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def empty_caches(work_dir: Path) -> None:
    """Remove what evaluations that were killed left behind, and nothing of those that are running."""
    with _locked(work_dir):
        for folder in work_dir.glob(f"{FOLDER_PREFIX}*"):
            try:
                lock = _lock_folder(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, FileNotFoundError):
                continue
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lay_out(tree: Path, files: Mapping[str, str]) -> None:
    tree.mkdir(mode=0o755)
    write_fla_base(tree)
    target = tree / TARGET_DIR
    target.mkdir(parents=True)
    for name, text in files.items():
        (target / name).write_text(text, encoding="utf-8")
    # The fork's own __init__ may import what a submission does not bring.
    (target / "__init__.py").write_text("")
    for path in (tree, *tree.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _start(
    tree: Path, job: EvaluationJob, tier: SandboxTier, end: socket.socket, log: IO[bytes], triton_cache: Path
) -> SandboxedProcess:
    package = Path(kernels.__file__).parent
    is_gpu = job.device != "cpu"
    environment = {
        "TRITON_CACHE_DIR": "/tmp/triton",  # noqa: S108 - the sandbox's own
        "OMP_NUM_THREADS": "1",
        **({} if is_gpu else {"TRITON_INTERPRET": "1"}),
        **_visible_gpu(job.device),
        **{name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if is_gpu and name in os.environ},
    }
    descriptor, device = str(end.fileno()), "cuda:0" if is_gpu else "cpu"
    if tier is SandboxTier.NONE:
        mounts = python_mounts()
        paths = [*(str(mount.host) for mount in mounts[-2:]), str(package.parent)]
        environment |= {
            "PATH": os.defpath,
            "HOME": str(tree.parent),
            "TRITON_CACHE_DIR": str(triton_cache),
        }
        spec = SandboxSpec(
            argv=python_argv(_PROGRAM, paths, descriptor, str(tree), device), environment=environment
        )
        return start_unsandboxed(spec, pass_fds=(end.fileno(),), output=log)
    interpreter = python_mounts()
    mounts = [
        *interpreter,
        # Only what the worker runs: with the rest a submission could call our kernels in place of its own.
        *(Mount(host=package / name, inside=Path("/quasar/src/kernels") / name) for name in _WORKER_FILES),
        Mount(host=tree, inside=Path("/quasar/tree")),
    ]
    paths = [str(mount.inside) for mount in interpreter if mount.inside.is_relative_to("/quasar")]
    spec = SandboxSpec(
        argv=python_argv(_PROGRAM, [*paths, "/quasar/src"], descriptor, "/quasar/tree", device),
        mounts=mounts,
        # The whole fla-core, forbidden operators included; the tree has the part that submissions may use.
        hidden=[mount.inside / "fla" for mount in interpreter if (mount.host / "fla").is_dir()],
        environment=environment,
        devices=_devices(job.device),
        # CUDA reserves address space far beyond what it uses.
        limits=Limits(data_bytes=None) if is_gpu else Limits(),
    )
    return start_sandboxed(spec, pass_fds=(end.fileno(),), output=log)


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


def _visible_gpu(device: str) -> dict[str, str]:
    """What makes the leased GPU the only one, number 0, of a worker.

    By its UUID: a number would count the GPUs whose files the worker sees, and it sees one.
    """
    return {"CUDA_VISIBLE_DEVICES": "" if device == "cpu" else _uuid(device)}
