"""One evaluation from job to report, stage by stage."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import torch

from kernels.harness.session import CandidateFailed
from node.device_turns import BackgroundTurn
from node.sandbox_spec import SandboxTier
from protocol.errors import DeviceBusy, SandboxUnavailable
from protocol.judging import Measurements, fault_of, judge
from protocol.messages import SHORT_OF_MEMORY, EvaluationJob, EvaluationReport, Figures
from protocol.rules import RULES_VERSION
from protocol.verdicts import Status
from roles.referee.drawing import Drawing, timed_shape
from roles.referee.gpu import MemoryWatch, roofline_tokens_per_sec, using_memory, wait_until_cool
from roles.referee.measuring import Measuring
from roles.referee.own_folder import remove_left_folders
from roles.referee.processors import shared_processor
from roles.referee.sources import check_sources, take_sources
from roles.referee.stages import Countdown, Ended, Record, stated
from roles.referee.worker import Worker, choose_tier, running_worker, running_yardstick
from roles.referee.yardstick import Yardstick

LOCK_TIMEOUT_S: Final = 1800.0
STATUS_OF: Final = {
    "build": Status.BUILD_FAILED,
    "crash": Status.CRASHED,
    "memory": Status.OUT_OF_MEMORY,
    "timeout": Status.TIMED_OUT,
    "tampered": Status.TAMPERED,
}

Announce = Callable[[str], None]


def evaluate(job: EvaluationJob, announce: Announce) -> EvaluationReport:
    """Run every stage that the submission survives; `announce` gets each stage's name."""
    record = Record()
    tier = SandboxTier.NONE
    measurements: Measurements | None = None
    try:
        Path(job.work_dir).mkdir(parents=True, exist_ok=True)
        remove_left_folders(Path(job.work_dir))
        with record.stage("fetch", announce):
            sources = take_sources(job.source, job.work_dir)
        with record.stage("imports", announce):
            check_sources(sources, job, record)
        with record.stage("sandbox", announce):
            tier = choose_tier(job)
        with using_memory():
            measurements = _measure(job, sources, tier, record, announce)
        roofline = roofline_tokens_per_sec(timed_shape(job, job.sequence_length), torch.device(job.device))
        record.evidence["roofline_tokens_per_sec"] = roofline
        status = judge(measurements, job.claimed_tokens_per_sec, roofline_tokens_per_sec=roofline)
        reason = _reason(status, measurements, job)
    except Ended as end:
        status, reason = end.status, str(end)
        if end.is_short_of_memory:
            record.evidence[SHORT_OF_MEMORY] = True
    except CandidateFailed as failure:
        status, reason = STATUS_OF[failure.kind], str(failure)
    except (SandboxUnavailable, DeviceBusy) as error:
        status, reason = Status.INFRASTRUCTURE, str(error)
    return EvaluationReport(
        figures=_figures(job, status, reason, measurements, record),
        sandbox_tier=tier.value,
    )


def _measure(
    job: EvaluationJob, sources: dict[str, str], tier: SandboxTier, record: Record, announce: Announce
) -> Measurements:
    # Measurements on one machine take turns: two busy processes double a median.
    with record.stage("wait for device", announce):
        turn = BackgroundTurn(job.device, timeout_s=LOCK_TIMEOUT_S)
        turn.acquire()
    try:
        return _measure_in_turn(job, sources, tier, turn, record, announce)
    finally:
        turn.release()


def _measure_in_turn(
    job: EvaluationJob,
    sources: dict[str, str],
    tier: SandboxTier,
    turn: BackgroundTurn,
    record: Record,
    announce: Announce,
) -> Measurements:
    drawing = Drawing(job)
    # The yardstick is there before the submission, and after it.
    yardstick_left_s = Countdown(3 * job.deadline_s)
    with ExitStack() as opened:
        yardstick = None
        if job.profile == "gpu":
            yardstick = settled_yardstick(job, drawing, opened, yardstick_left_s, record, announce)
        # The submission's time begins here: what the yardstick took is not its own.
        left_s = Countdown(job.deadline_s)
        watch = MemoryWatch(torch.device(job.device), job.vram_limit_bytes)

        def on_resume() -> None:
            watch.note_room()
            left_s.go()

        def give_way() -> None:
            # A challenge to a model on this device does not wait for the rest of the trials.
            started = time.monotonic()
            turn.give_way()
            yardstick_left_s.extend(time.monotonic() - started)

        try:
            # Stopped it does not use up its time, whatever takes long meanwhile.
            with running_worker(
                sources, job, tier, left_s, on_pause=left_s.stop, on_resume=on_resume
            ) as worker:
                measuring = _measure_worker(
                    job, worker, drawing, yardstick, watch, give_way, record, announce
                )
        except CandidateFailed:
            if yardstick is not None:
                yardstick.expect_working()
            raise
        if yardstick is not None:
            yardstick.check_after()
            # What is taken off the trials may be another amount since then.
            record.evidence |= measuring.evidence()
        return measuring.measurements()


def settled_yardstick(
    job: EvaluationJob,
    drawing: Drawing,
    opened: ExitStack,
    left_s: Callable[[], float],
    record: Record,
    announce: Announce,
) -> Yardstick:
    """Start the yardstick and measure it by itself; `opened` ends it and notes its times. Raises Ended."""
    with record.stage("yardstick", announce):
        record.evidence["gpu_state"] = wait_until_cool(job.device)
        worker = opened.enter_context(running_yardstick(job, left_s))
        shapes = [timed_shape(job, length) for length in drawing.lengths]
        processor = opened.enter_context(shared_processor())
        yardstick = Yardstick(worker.contestant, drawing, shapes, processor=processor)
        opened.callback(lambda: record.evidence.update(yardstick=yardstick.evidence()))
        yardstick.settle()
    return yardstick


def _measure_worker(
    job: EvaluationJob,
    worker: Worker,
    drawing: Drawing,
    yardstick: Yardstick | None,
    watch: MemoryWatch,
    give_way: Callable[[], None],
    record: Record,
    announce: Announce,
) -> Measuring:
    def after_trial() -> None:
        watch.look()
        give_way()
        # The reference model may have taken memory meanwhile, while the submission stands still.
        watch.resume()

    measuring = Measuring(job, worker.contestant, drawing, yardstick, after_trial=after_trial)
    try:
        with record.stage("build", announce):
            worker.contestant.wait_ready()
        watch.look()
        with record.stage("probe", announce):
            measuring.probe()
        with record.stage("time", announce):
            measuring.time()
        return measuring
    except CandidateFailed as failure:
        if failure.kind == "memory":
            watch.expect_room(str(failure))
        raise
    except torch.cuda.OutOfMemoryError:
        # The referee's own, which the submission may have taken.
        watch.look()
        raise
    finally:
        findings = measuring.findings
        record.evidence["lengths"] = drawing.lengths
        record.evidence["seeds"] = drawing.seeds
        record.evidence |= measuring.evidence()
        if findings.accuracy is not None:
            record.evidence["accuracy"] = {
                "cosine_similarity": _finite(findings.accuracy.cosine_similarity),
                "max_abs_diff": _finite(findings.accuracy.max_abs_diff),
                "relative_error": _finite(findings.accuracy.relative_error),
            }
        record.evidence["log_tail"] = worker.log_tail()
        if job.device != "cpu":
            record.vram_mb = watch.peak_bytes / 2**20


def _reason(status: Status, measurements: Measurements, job: EvaluationJob) -> str:
    if status is Status.BELOW_CLAIM:
        return f"measured {measurements.tokens_per_sec:,.1f} tok/s, claimed {job.claimed_tokens_per_sec:,.1f}"
    if status is Status.IMPLAUSIBLE:
        return f"{measurements.tokens_per_sec:,.1f} tok/s: the GPU cannot read q, k, v and write o that fast"
    if status is Status.INACCURATE:
        return (
            f"relative error {measurements.relative_error:.1e}, the yardstick's is "
            f"{measurements.yardstick_relative_error:.1e}"
        )
    return (
        f"{measurements.tokens_per_sec:,.1f} tok/s, cosine similarity {measurements.cosine_similarity:.6f}, "
        f"largest difference {measurements.max_abs_diff:.2e}"
    )


def _figures(
    job: EvaluationJob,
    status: Status,
    reason: str,
    measurements: Measurements | None,
    record: Record,
) -> Figures:
    shape = timed_shape(job, job.sequence_length)
    evidence: dict[str, Any] = {
        "reason": stated(reason),
        "profile": job.profile,
        "shape": shape.as_message(),
        "stage_s": record.stage_s,
        **record.evidence,
    }
    found = measurements
    accuracy = record.evidence.get("accuracy", {})
    return Figures(
        status=status,
        fault=fault_of(status, scoring_gpu=job.profile == "gpu"),
        measured_tokens_per_sec=found.tokens_per_sec if found else None,
        spread=found.spread if found else None,
        cosine_similarity=accuracy.get("cosine_similarity"),
        max_abs_diff=accuracy.get("max_abs_diff"),
        relative_error=accuracy.get("relative_error"),
        vram_mb=record.vram_mb,
        gpu=device_name(job.device),
        versions=versions(),
        rules_version=RULES_VERSION,
        fingerprint=record.fingerprint,
        evidence=evidence,
    )


def device_name(device: str) -> str:
    """Return the name of the device as figures carry it."""
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def versions() -> dict[str, str]:
    """Return the versions that figures depend on."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "triton", "fla-core")},
    }


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
