"""Start the candidate's worker in the sandbox, with its tree laid over the pinned base."""

import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

import torch

from kernels.export import export_files
from kernels.fork_base import write_fla_base
from kernels.harness.session import CandidateFailed, Session
from kernels.harness.wire import socket_pair
from node.landlock import start_landlocked
from node.processes import output_tail
from node.sandbox import detect_tier, start_sandboxed, start_unsandboxed
from node.sandbox_spec import SandboxTier
from node.sandboxed_process import SandboxedProcess
from node.standstill import RanWhileStopped
from protocol.errors import SandboxUnavailable
from protocol.forks import TARGET_DIR
from protocol.messages import EvaluationJob
from protocol.shown_text import printable
from protocol.verdicts import Status
from roles.referee.contestant import Contestant
from roles.referee.own_folder import own_folder
from roles.referee.stages import Ended
from roles.referee.worker_spec import confined_spec_in_place, isolated_spec, spec_in_place

LOG_TAIL_BYTES: Final = 4000


@dataclass(frozen=True, slots=True)
class Worker:
    """A started worker and what it printed."""

    contestant: Contestant
    log: IO[bytes]
    process: SandboxedProcess
    memory_limit_bytes: int

    def log_tail(self) -> str:
        """Return the end of what the worker printed, in printable characters."""
        text = output_tail(self.log, LOG_TAIL_BYTES).decode("utf-8", errors="replace")
        # As long as what was printed: the sign for what is no UTF-8 takes three bytes.
        return printable(text.replace("\N{REPLACEMENT CHARACTER}", "?"), keep="\n")

    def explained(self, failure: CandidateFailed) -> CandidateFailed | Ended:
        """One that broke off may have been ended by the kernel, for its own memory or that of others."""
        if failure.kind != "crash":
            return failure
        if self.process.has_exceeded_memory:
            limit_mb = self.memory_limit_bytes // 2**20
            return CandidateFailed("memory", f"it held more than {limit_mb:,} MiB of the host's memory")
        if self.process.was_sacrificed:
            return Ended(
                Status.INFRASTRUCTURE, "the host ran out of memory and ended the submission's worker"
            )
        return failure


def choose_tier(job: EvaluationJob) -> SandboxTier:
    """Return the isolation that this evaluation gets.

    Raises:
        SandboxUnavailable: it is less than the job demands.
    """
    tier = detect_tier()
    if not tier.suffices(job.isolation):
        raise SandboxUnavailable(
            "this host offers no sandbox that is strong enough for hostile code "
            f"(offered: {tier.value}): apt-get install bubblewrap; "
            "`quasar-node doctor` says what is in the way"
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
    on_pause: Callable[[], None] = lambda: None,
    on_resume: Callable[[], None] = lambda: None,
) -> Iterator[Worker]:
    """Run a worker for the files of `fla/ops/quasar/`; everything of it is gone afterwards.

    `triton_cache`, of a worker without a sandbox alone, is a folder that stays. It is stopped between its
    trials: `on_pause` is called then, and `on_resume` before it goes on.
    """
    with own_folder(Path(job.work_dir)) as folder, tempfile.TemporaryFile() as log:
        tree = folder / "tree"
        _lay_out(tree, files)
        ours, theirs = socket_pair()
        with ours:
            with theirs:
                process = _start(tree, job, tier, theirs, log, triton_cache or folder / "triton")
            session = Session(ours, deadline_s=deadline_s, device=torch.device(job.device))

            def pause() -> None:
                with _ran_is_tampered():
                    process.pause()
                on_pause()

            def resume() -> None:
                on_resume()
                with _ran_is_tampered():
                    process.resume()

            worker = Worker(
                Contestant(session, pause=pause, resume=resume), log, process, job.memory_limit_bytes
            )
            try:
                yield worker
            except CandidateFailed as failure:
                explained = worker.explained(failure)
                if explained is failure:
                    raise
                raise explained from failure
            finally:
                process.kill()
                session.close()


@contextmanager
def _ran_is_tampered() -> Iterator[None]:
    """Who uses the machine in another's turn disturbs what is measured then."""
    try:
        yield
    except RanWhileStopped as error:
        raise CandidateFailed("tampered", f"between its trials {error}") from error


@contextmanager
def running_yardstick(job: EvaluationJob, deadline_s: Callable[[], float]) -> Iterator[Worker]:
    """Run the yardstick's worker: our own code, which needs no sandbox and keeps what it has compiled."""
    files, cache = export_files("chunk"), Path(job.work_dir) / "yardstick"
    with running_worker(files, job, SandboxTier.NONE, deadline_s, triton_cache=cache) as worker:
        yield worker


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
    descriptor = end.fileno()
    if tier is SandboxTier.NONE:
        spec = spec_in_place(tree, job, descriptor)
        spec = replace(spec, environment={**spec.environment, "TRITON_CACHE_DIR": str(triton_cache)})
        return start_unsandboxed(spec, pass_fds=(descriptor,), output=log)
    if tier is SandboxTier.LANDLOCK:
        spec = confined_spec_in_place(tree, job, descriptor)
        return start_landlocked(spec, pass_fds=(descriptor,), output=log)
    memory_bytes = job.memory_limit_bytes if tier is SandboxTier.CGROUP else None
    spec = isolated_spec(tree, job, descriptor, memory_bytes)
    return start_sandboxed(spec, pass_fds=(descriptor,), output=log)
