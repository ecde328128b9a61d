"""Probes and trials, with the worker's own loop in a thread and operators that are plain PyTorch."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.harness import wire
from kernels.harness.session import Session
from kernels.harness.worker import _run
from kernels.reference import chunked
from protocol.messages import DirectorySource, EvaluationJob
from protocol.verdicts import Status
from roles.referee.measuring import Measuring, Overhead
from roles.referee.stages import Ended

Operator = Callable[..., Any]


def honest(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, beta: torch.Tensor, **options: Any) -> Any:
    return chunked(q, k, v, beta, **options)


@contextmanager
def measuring(operator: Operator, tmp_path: Path, *, trials: int = 3) -> Iterator[Measuring]:
    job = EvaluationJob(
        source=DirectorySource(path=str(tmp_path)),
        target_sequence_length=100_000,
        sequence_length=96,
        profile="cpu",
        device="cpu",
        trials_min=trials,
        trials_max=trials,
        work_dir=str(tmp_path),
    )
    ours, theirs = wire.socket_pair()

    def serve() -> None:
        while True:
            try:
                received = wire.receive(theirs, max_descriptors=2)
            except wire.WireBroken:
                return
            _run(operator, received.message, received.descriptors, "cpu")
            wire.send(theirs, {"nonce": received.message["nonce"]})

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Measuring(job, Session(ours, deadline_s=lambda: 10.0))
    finally:
        ours.close()
        thread.join()
        theirs.close()


def test_an_exact_operator_is_exact(tmp_path: Path) -> None:
    with measuring(honest, tmp_path) as run:
        run.probe()
        figures = run.time(Overhead())
    assert figures.relative_error < 1e-6
    assert figures.cosine_similarity > 0.99999
    assert figures.yardstick_relative_error > 1e-3
    assert len(run.findings.seconds) == 3
    assert len(set(run.findings.seeds)) == len(run.findings.seeds)


def test_throughput_is_of_the_median_without_the_overhead(tmp_path: Path) -> None:
    def slow(*tensors: torch.Tensor, **options: Any) -> Any:
        time.sleep(0.1)
        return honest(*tensors, **options)

    with measuring(slow, tmp_path) as run:
        figures = run.time(Overhead(seconds=0.05, spread_s=0.001))
    assert 96 / figures.tokens_per_sec >= 0.05
    assert min(run.findings.seconds) >= 0.05


@pytest.mark.parametrize("overhead", [Overhead(seconds=5.0), Overhead(seconds=0.0, spread_s=5.0)])
def test_a_figure_that_drowns_in_the_overhead_is_no_figure(overhead: Overhead, tmp_path: Path) -> None:
    with measuring(honest, tmp_path) as run, pytest.raises(Ended, match="too short to be measured") as caught:
        run.time(overhead)
    assert caught.value.status is Status.INFRASTRUCTURE


def test_overhead_is_a_time(tmp_path: Path) -> None:
    with measuring(lambda q, k, v, beta, **options: (v, None), tmp_path) as run:
        overhead = run.overhead()
    assert 0 < overhead.seconds < 1
    assert 0 <= overhead.spread_s < 1


@pytest.mark.parametrize(
    ("operator", "status"),
    [
        (lambda q, k, v, beta, **options: (v, None), Status.WRONG_OUTPUT),
        (lambda q, k, v, beta, **options: (v * float("nan"), None), Status.NAN_OR_INF),
        (
            lambda q, k, v, beta, **options: (
                honest(q, k, v, beta, **options)[0] * (1 + 0.004 * torch.randn(q.shape)),
                None,
            ),
            Status.INCONSISTENT,
        ),
        (
            lambda q, k, v, beta, **options: (honest(q, k, v, beta)[0], None),
            Status.WRONG_OUTPUT,
        ),
    ],
    ids=["identity", "nan", "noise", "packed sequences run together"],
)
def test_probes_end_what_is_wrong(operator: Operator, status: Status, tmp_path: Path) -> None:
    with measuring(operator, tmp_path) as run, pytest.raises(Ended) as caught:
        run.probe()
    assert caught.value.status is status


@pytest.mark.parametrize("length", [1, 2, 63, 65])
def test_any_length_can_be_measured(length: int, tmp_path: Path) -> None:
    with measuring(honest, tmp_path) as run:
        run._job = run._job.model_copy(update={"sequence_length": length})
        run.probe()
        assert run.time(Overhead()).relative_error < 1e-6


def test_measuring_leaves_no_descriptor_open(tmp_path: Path) -> None:
    # What earlier tests left in reference cycles is closed now, not in between.
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with measuring(honest, tmp_path) as run:
        run.time(Overhead())
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
