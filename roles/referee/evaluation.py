"""One evaluation from job to report, stage by stage."""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

from kernels.harness.session import CandidateFailed
from node.locks import device_lock
from node.sandbox import SandboxTier
from protocol.errors import DeviceBusy, SandboxUnavailable
from protocol.judging import Measurements, fault_of, judge
from protocol.messages import EvaluationJob, EvaluationReport, Figures
from protocol.rules import RULES_VERSION
from protocol.verdicts import Status
from roles.referee.measuring import Measuring, Overhead, trial_shape
from roles.referee.sources import check_sources, take_sources
from roles.referee.stages import Ended, Record, printable
from roles.referee.worker import Worker, choose_tier, empty_caches, running_worker

LOCK_TIMEOUT_S: Final = 1800.0
_STATUS_OF: Final = {
    "build": Status.BUILD_FAILED,
    "crash": Status.CRASHED,
    "memory": Status.OUT_OF_MEMORY,
    "timeout": Status.TIMED_OUT,
    "tampered": Status.TAMPERED,
}
_NO_OPERATOR: Final = {
    "chunk.py": "def chunk_quasar(q, k, v, beta, **kwargs):\n    return v, None\n",
    "fused_recurrent.py": "def fused_recurrent_quasar(q, k, v, beta, **kwargs):\n    return v, None\n",
}

Announce = Callable[[str], None]


def evaluate(job: EvaluationJob, announce: Announce) -> EvaluationReport:
    """Run every stage that the submission survives; `announce` gets each stage's name."""
    record = Record()
    tier = SandboxTier.NONE
    measurements: Measurements | None = None
    vram_mb: float | None = None
    try:
        Path(job.work_dir).mkdir(parents=True, exist_ok=True)
        empty_caches(Path(job.work_dir))
        with record.stage("fetch", announce):
            sources = take_sources(job)
        with record.stage("imports", announce):
            check_sources(sources, job, record)
        with record.stage("sandbox", announce):
            tier = choose_tier(job)
        measurements = _measure(job, sources, tier, record, announce)
        status = judge(measurements, job.claimed_tokens_per_sec)
        reason = _reason(status, measurements, job)
    except Ended as end:
        status, reason = end.status, str(end)
    except CandidateFailed as failure:
        status, reason = _STATUS_OF[failure.kind], str(failure)
    except (SandboxUnavailable, DeviceBusy) as error:
        status, reason = Status.INFRASTRUCTURE, str(error)
    return EvaluationReport(
        figures=_figures(job, status, reason, measurements, vram_mb, record),
        fingerprint=record.fingerprint,
        sandbox_tier=tier.value,
    )


def _measure(
    job: EvaluationJob, sources: dict[str, str], tier: SandboxTier, record: Record, announce: Announce
) -> Measurements:
    # Measurements on one machine take turns: two busy processes double a median.
    with record.stage("wait for device", announce):
        lock = device_lock(job.device, timeout_s=LOCK_TIMEOUT_S)
        lock.acquire()
    try:
        deadline = time.monotonic() + job.deadline_s

        def left_s() -> float:
            return deadline - time.monotonic()

        overhead = Overhead()
        if job.profile == "gpu":
            with record.stage("calibrate", announce), running_worker(_NO_OPERATOR, job, tier, left_s) as idle:
                idle.session.wait_ready()
                overhead = Measuring(job, idle.session).overhead()
        record.evidence["overhead_s"] = overhead.seconds
        record.evidence["overhead_spread_s"] = overhead.spread_s
        with running_worker(sources, job, tier, left_s) as worker:
            return _measure_worker(job, worker, overhead, record, announce)
    finally:
        lock.release()


def _measure_worker(
    job: EvaluationJob, worker: Worker, overhead: Overhead, record: Record, announce: Announce
) -> Measurements:
    measuring = Measuring(job, worker.session)
    try:
        with record.stage("build", announce):
            worker.session.wait_ready()
        with record.stage("probe", announce):
            measuring.probe()
        with record.stage("time", announce):
            return measuring.time(overhead)
    finally:
        findings = measuring.findings
        record.evidence["trial_s"] = [round(seconds, 6) for seconds in findings.seconds]
        record.evidence["seeds"] = findings.seeds
        record.evidence["yardstick_relative_error"] = findings.yardstick_error
        if findings.accuracy is not None:
            record.evidence["accuracy"] = {
                "cosine_similarity": _finite(findings.accuracy.cosine_similarity),
                "max_abs_diff": _finite(findings.accuracy.max_abs_diff),
                "relative_error": _finite(findings.accuracy.relative_error),
            }
        record.evidence["log_tail"] = worker.log_tail()


def _reason(status: Status, measurements: Measurements, job: EvaluationJob) -> str:
    if status is Status.BELOW_CLAIM:
        return f"measured {measurements.tokens_per_sec:,.1f} tok/s, claimed {job.claimed_tokens_per_sec:,.1f}"
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
    vram_mb: float | None,
    record: Record,
) -> Figures:
    shape = trial_shape(job)
    evidence: dict[str, Any] = {
        "reason": printable(reason),
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
        vram_mb=vram_mb,
        gpu="cpu" if job.device == "cpu" else torch.cuda.get_device_name(job.device),
        versions={
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("torch", "triton", "fla-core")},
        },
        rules_version=RULES_VERSION,
        evidence=evidence,
    )


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
