"""Whether an honest worker stands still between its trials, and how long it takes to stop it.

    python -m benchmarks.referee.pauses --cycles 300

Our own operator runs in a sandbox; after each trial its worker is stopped as the referee stops it, and goes
on before the next one. `ran_ns` is how long it ran while it was stopped, at most; `longer_than_noise` in how
many pauses that was more than is taken for noise, of which the referee lets one pass. `states` are those in
which threads stood still, by the kernel's letters, over all pauses. `accused` are the pauses that would have
ended an evaluation as tampered. With `--cgroup` a second worker is frozen in a cgroup of its own, where this
host permits it. Prints one JSON document; 1 when an honest worker would have been accused.
"""

import argparse
import json
import math
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from kernels.export import export_files
from kernels.harness.session import CandidateFailed
from node import sandboxed_process
from node.cgroups import find_parent
from node.process_tree import family, signal_all
from node.sandbox import detect_tier
from node.sandbox_spec import SandboxTier
from node.sandboxed_process import SandboxedProcess
from node.standstill import NOISE_NS, Changes, RanWhileStopped, Standstill
from protocol.errors import CgroupUnavailable
from protocol.messages import DirectorySource, EvaluationJob
from roles.referee.drawing import Drawing, timed_shape
from roles.referee.worker import running_worker

DEADLINE_S = 600.0
"""For each trial, the compilation of the first included."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cycles", type=int, default=300, help="trials, each with a pause after it")
    parser.add_argument("--seq-len", type=int, help="default: 100,000, or 64 on a CPU")
    parser.add_argument("--calls", type=int, default=16, help="of the operator in a trial; on a CPU one")
    parser.add_argument("--pause-s", type=float, default=0.05, help="how long a pause lasts at least")
    parser.add_argument("--cgroup", action="store_true", help="also freeze one in a cgroup")
    parser.add_argument("--device", default="cuda:0")
    args = parser.parse_args(arguments)
    args.seq_len = args.seq_len or (64 if args.device == "cpu" else 100_000)
    return args


def main() -> int:
    """Run the trials and print what the pauses were like."""
    args = parse(sys.argv[1:])
    offered = detect_tier()
    if offered is SandboxTier.NONE:
        print("this host offers no sandbox", file=sys.stderr)
        return 1
    # The signals are what is asked about, also where there are cgroups.
    tier = SandboxTier.BWRAP if offered is SandboxTier.CGROUP else offered
    stopped, frozen = _run(args, tier), None
    if args.cgroup:
        frozen = _run(args, offered) if offered is SandboxTier.CGROUP else {"not available": _no_cgroup()}
    result = {"device": args.device, "kernel": platform.release(), "stopped": stopped, "frozen": frozen}
    print(json.dumps(result, indent=2))
    return 1 if any(run and (run.get("failure") or run.get("accused")) for run in (stopped, frozen)) else 0


@dataclass(slots=True)
class _Pauses:
    """What is seen of the pauses of one worker."""

    pause_s: list[float] = field(default_factory=list)
    resume_s: list[float] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    accused: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        return {
            "pauses": len(self.pause_s),
            "pause_ms": _milliseconds(self.pause_s),
            "resume_ms": _milliseconds(self.resume_s),
            "ran_ns": max((changes.ran_ns for changes in self.changes), default=None),
            "returning_ns": max((changes.returning_ns for changes in self.changes), default=None),
            "longer_than_noise": sum(changes.ran_ns > NOISE_NS for changes in self.changes),
            "started": sum(changes.started for changes in self.changes),
            "gone": sum(changes.gone for changes in self.changes),
            "states": dict(self.states),
            "accused": self.accused,
        }


def _run(args: argparse.Namespace, tier: SandboxTier) -> dict[str, Any]:
    """Run one worker's trials and stop it after each."""
    seen = _Pauses()

    class Watched(Standstill):
        """One that goes on whatever it finds."""

        def __init__(self, pid: int, *, with_itself: bool = True) -> None:
            self._watched = pid
            super().__init__(pid, with_itself=with_itself)
            seen.states += self.states

        def end(self, *, allowed_ns: int = NOISE_NS) -> Changes:
            changes = self.changes()
            seen.changes.append(changes)
            try:
                return super().end(allowed_ns=allowed_ns)
            except RanWhileStopped as error:
                seen.accused.append(str(error))
                signal_all(family(self._watched), signal.SIGCONT)
                return changes

    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(sandboxed_process, "Standstill", Watched),
        patch.object(SandboxedProcess, "pause", _timed(SandboxedProcess.pause, seen.pause_s)),
        patch.object(SandboxedProcess, "resume", _timed(SandboxedProcess.resume, seen.resume_s)),
    ):
        failure = _run_trials(_job(args, folder), args, tier)
    return {"tier": tier.value, "failure": failure, **seen.summary()}


def _run_trials(job: EvaluationJob, args: argparse.Namespace, tier: SandboxTier) -> str | None:
    """Return why it came to an end before all trials were run."""
    drawing = Drawing(job)
    shape = timed_shape(job, job.sequence_length)
    calls = min(args.calls, drawing.most_sets(shape))
    try:
        with running_worker(export_files("chunk"), job, tier, lambda: DEADLINE_S) as worker:
            worker.contestant.wait_ready()
            for _ in range(args.cycles):
                worker.contestant.run(drawing.draw_unrecorded(shape, count=calls).sets(calls))
                time.sleep(args.pause_s)
    except CandidateFailed as failed:
        return str(failed)
    return None


def _job(args: argparse.Namespace, folder: str) -> EvaluationJob:
    return EvaluationJob(
        source=DirectorySource(path=folder),
        target_sequence_length=100_000,
        sequence_length=args.seq_len,
        profile="cpu" if args.device == "cpu" else "gpu",
        device=args.device,
        work_dir=folder,
    )


def _timed(method: Callable[[SandboxedProcess], None], seconds: list[float]) -> Callable[..., None]:
    """The method, which also notes how long it took."""

    def timed(process: SandboxedProcess) -> None:
        started = time.perf_counter()
        try:
            method(process)
        finally:
            seconds.append(time.perf_counter() - started)

    return timed


def _milliseconds(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    ranked = sorted(seconds)
    percentile = ranked[min(len(ranked) - 1, math.ceil(0.99 * len(ranked)) - 1)]
    named = {"median": statistics.median(ranked), "99 %": percentile, "max": ranked[-1]}
    return {name: round(1e3 * value, 3) for name, value in named.items()}


def _no_cgroup() -> str:
    try:
        return f"no sandbox starts below {find_parent()}"
    except CgroupUnavailable as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(main())
