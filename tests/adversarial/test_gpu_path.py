"""The way of an evaluation on a GPU, with the yardstick, in shapes that a CPU's interpreter can do."""

import itertools
import math
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.export import export_files
from kernels.harness.accuracy import Accuracy
from kernels.harness.session import CandidateFailed, Session, Trial
from protocol.messages import ComparisonJob, EvaluationJob
from protocol.verdicts import LeadOutcome, Status
from roles.referee import comparison, drawing, evaluation, gpu, processors, side, yardstick
from roles.referee.comparison import compare
from roles.referee.drawing import Drawn
from roles.referee.evaluation import evaluate
from roles.referee.measuring import Measuring
from roles.referee.stages import Countdown
from tests.adversarial.conftest import laid_out
from tests.adversarial.test_attacks import wrapped

TRIALS = 4


@pytest.fixture(autouse=True)
def as_much_as_a_cpu_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LENGTHS", "JITTER_STEPS"):
        monkeypatch.setitem(getattr(drawing, name), "gpu", 2)
    # A processor that does other things as well accuses nobody.
    for module, name in itertools.product((comparison, yardstick), ("STEADY", "ACCUSING")):
        monkeypatch.setattr(module, name, float("inf"))
    monkeypatch.setattr(yardstick, "CLEARING_S", 0.0)
    monkeypatch.setattr(processors, "FEWEST", 2)


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many outputs of earlier trials are still there before each trial: on a GPU they are gigabytes."""
    counts: list[int] = []
    outputs: list[weakref.ref[torch.Tensor]] = []
    timed = Measuring.timed

    def watched(measuring: Measuring, drawn: Drawn) -> Trial:
        counts.append(sum(output() is not None for output in outputs))
        trial = timed(measuring, drawn)
        outputs.extend(weakref.ref(output) for output in trial.outputs)
        return trial

    monkeypatch.setattr(Measuring, "timed", watched)
    return counts


def job_of(folder: Path, suffix: str = "") -> EvaluationJob:
    return EvaluationJob(
        source=laid_out(folder, export_files("chunk"), suffix),
        target_sequence_length=100_000,
        sequence_length=96,
        profile="gpu",
        device="cpu",
        trials_min=TRIALS,
        trials_max=TRIALS,
        work_dir=str(folder / "work"),
    )


def check_yardstick(evidence: dict[str, Any]) -> None:
    """It ran before and beside, on one processor, and afterwards if its hand-over was slow beside it."""
    found = evidence["yardstick"]
    assert len(found["overhead_before_s"]) == yardstick.ROUNDS
    assert len(found["overhead_beside_s"]) == TRIALS
    assert len(found["overhead_after_s"]) in (0, yardstick.ROUNDS)
    assert (found["processor"] is None) == (len(os.sched_getaffinity(0)) < 2)


def test_a_submission_is_measured_beside_the_yardstick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: list[int]
) -> None:
    # As if the hand-over had been slower beside it.
    monkeypatch.setattr(yardstick.Yardstick, "_excess_s", lambda _self: 1e-4)
    figures = evaluate(job_of(tmp_path), lambda _stage: None).figures
    assert figures.status is Status.PASSED, figures.evidence
    check_yardstick(figures.evidence)
    assert len(figures.evidence["yardstick"]["overhead_after_s"]) == yardstick.ROUNDS
    assert len(figures.evidence["trial_s"]) == TRIALS
    assert alive == TRIALS * [0]


def test_two_submissions_are_measured_beside_the_yardstick(tmp_path: Path, alive: list[int]) -> None:
    both = ComparisonJob(earlier=job_of(tmp_path), later=job_of(tmp_path))
    figures = compare(both, lambda _stage: None).figures
    assert figures.outcome in (LeadOutcome.CONFIRMED, LeadOutcome.NOT_CONFIRMED), figures.evidence
    check_yardstick(figures.evidence)
    for name in ("earlier", "later"):
        assert len(figures.evidence[name]["trial_s"]) == TRIALS
    # Those of the first are compared once the second has run.
    assert alive == TRIALS * [0, 1]


@pytest.mark.parametrize(
    ("disturbed", "outcome", "noted"),
    [
        ([True, False], LeadOutcome.EARLIER_FAILED, {"earlier"}),
        ([False, True, False], LeadOutcome.LATER_FAILED, {"earlier", "later"}),
        ([False, True, True, True], LeadOutcome.INFRASTRUCTURE, {"earlier", "later"}),
    ],
    ids=["by the earlier", "by the later", "by somebody else"],
)
def test_a_gpu_left_busy_by_the_probes_ends_the_comparison(
    disturbed: list[bool],
    outcome: LeadOutcome,
    noted: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter(disturbed)
    monkeypatch.setattr(yardstick.Yardstick, "is_disturbed", lambda _self: next(answers))
    both = ComparisonJob(earlier=job_of(tmp_path), later=job_of(tmp_path))
    figures = compare(both, lambda _stage: None).figures
    assert figures.outcome is outcome, figures.evidence
    assert "the GPU" in figures.evidence["reason"]
    assert noted == {"earlier", "later"} & figures.evidence.keys()
    assert next(answers, None) is None
    assert list((tmp_path / "work").glob("run-*")) == []


def test_a_gpu_left_busy_in_a_round_ends_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the one that ran before the yardstick: in the second round the later one."""
    answers = iter([False, False, True, False])
    monkeypatch.setattr(yardstick.Yardstick, "is_disturbed", lambda _self: next(answers))
    monkeypatch.setattr(comparison, "ACCUSING", 0.25)
    monkeypatch.setattr(
        yardstick.Yardstick, "slowing_in", lambda self, _per_token: 0.5 if len(self.beside) == 2 else 0.0
    )
    both = ComparisonJob(earlier=job_of(tmp_path), later=job_of(tmp_path))
    figures = compare(both, lambda _stage: None).figures
    assert figures.outcome is LeadOutcome.LATER_FAILED, figures.evidence
    assert "busy after its turn" in figures.evidence["reason"]
    assert len(figures.evidence["earlier"]["trial_s"]) == 1


def test_what_takes_long_while_it_is_stopped_is_not_the_submissions_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that swaps or is suspended, or a slow reference."""
    stalled_s = 0.0

    class WithStalls(Countdown):
        def __init__(self, seconds: float) -> None:
            super().__init__(seconds, clock=lambda: time.monotonic() + stalled_s)

    compare = Measuring.compare

    def stalling(measuring: Measuring, trial: Trial, drawn: Drawn) -> Accuracy:
        nonlocal stalled_s
        stalled_s += 3600.0
        return compare(measuring, trial, drawn)

    monkeypatch.setattr(evaluation, "Countdown", WithStalls)
    monkeypatch.setattr(Measuring, "compare", stalling)
    figures = evaluate(job_of(tmp_path).model_copy(update={"profile": "cpu"}), lambda _stage: None).figures
    assert figures.status is Status.PASSED, figures.evidence
    assert stalled_s > 0


@pytest.fixture
def dies_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Have the worker whose first timed turn it is fail, and for so many trials after it everybody's."""

    def prepare(trials: float) -> None:
        left: float | None = None
        run, timed = Session.run, Measuring.timed

        def failing(session: Session, *arguments: Any, **options: Any) -> Trial:
            nonlocal left
            if left is not None and left >= 0:
                left -= 1
                raise CandidateFailed("crash", "CUDA error: unspecified launch failure")
            return run(session, *arguments, **options)

        def dying(measuring: Measuring, drawn: Drawn) -> Trial:
            nonlocal left
            left = trials if left is None else left
            return timed(measuring, drawn)

        monkeypatch.setattr(Session, "run", failing)
        monkeypatch.setattr(Measuring, "timed", dying)

    return prepare


@pytest.fixture
def free_percent(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much of the GPU's memory others leave."""
    for module in (gpu, side):
        monkeypatch.setattr(module, "memory_of", lambda _device: gpu.Memory(100, request.param, 0))
    return int(request.param)


WITHOUT_MEMORY = ["raise MemoryError", wrapped("raise RuntimeError('Triton Error [CUDA]: out of memory')")]


@pytest.mark.parametrize("suffix", WITHOUT_MEMORY, ids=["at import", "in a call"])
@pytest.mark.parametrize(
    ("free_percent", "status"),
    [(49, Status.INFRASTRUCTURE), (50, Status.OUT_OF_MEMORY)],
    indirect=["free_percent"],
)
def test_whose_fault_it_is_that_no_memory_is_left(
    free_percent: int, status: Status, suffix: str, tmp_path: Path
) -> None:
    figures = evaluate(job_of(tmp_path, suffix), lambda _stage: None).figures
    assert figures.status is status, figures.evidence
    assert figures.is_short_of_memory


@pytest.mark.parametrize(
    ("free_percent", "outcome"),
    [(24, LeadOutcome.INFRASTRUCTURE), (25, LeadOutcome.EARLIER_FAILED)],
    indirect=["free_percent"],
)
def test_whose_fault_it_is_that_no_memory_is_left_in_a_comparison(
    free_percent: int, outcome: LeadOutcome, tmp_path: Path
) -> None:
    job = ComparisonJob(earlier=job_of(tmp_path, WITHOUT_MEMORY[0]), later=job_of(tmp_path))
    figures = compare(job, lambda _stage: None).figures
    assert figures.outcome is outcome, figures.evidence


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("full"), CandidateFailed("memory", "cuMemCreate: full")]
)
def test_a_gpu_that_is_too_small_for_the_yardstick(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> Trial:
        raise error

    monkeypatch.setattr(Session, "run", run)
    figures = evaluate(job_of(tmp_path), lambda _stage: None).figures
    assert figures.status is Status.INFRASTRUCTURE, figures.evidence
    assert figures.is_short_of_memory
    assert "full" in figures.evidence["reason"]


@pytest.mark.parametrize(("trials", "status"), [(0, Status.CRASHED), (math.inf, Status.INFRASTRUCTURE)])
def test_a_gpu_that_dies_in_a_turn_of_the_submission_is_nobodys_fault(
    trials: float, status: Status, tmp_path: Path, dies_in_a_turn: Callable[[float], None]
) -> None:
    dies_in_a_turn(trials)
    figures = evaluate(job_of(tmp_path), lambda _stage: None).figures
    assert figures.status is status, figures.evidence


@pytest.mark.parametrize(
    ("trials", "outcome"), [(0, LeadOutcome.EARLIER_FAILED), (math.inf, LeadOutcome.INFRASTRUCTURE)]
)
def test_a_gpu_that_dies_in_a_turn_of_a_comparison_is_nobodys_fault(
    trials: float, outcome: LeadOutcome, tmp_path: Path, dies_in_a_turn: Callable[[float], None]
) -> None:
    dies_in_a_turn(trials)
    figures = compare(
        ComparisonJob(earlier=job_of(tmp_path), later=job_of(tmp_path)), lambda _stage: None
    ).figures
    assert figures.outcome is outcome, figures.evidence
