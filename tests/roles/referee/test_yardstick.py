"""The yardstick beside a submission, with a clock and trials that are made up."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.harness.accuracy import reference_output
from kernels.harness.inputs import InputSets
from kernels.harness.session import CandidateFailed, Trial
from protocol.messages import EvaluationJob
from protocol.verdicts import Status
from roles.referee.drawing import Drawing, timed_shape
from roles.referee.measuring import Measuring
from roles.referee.stages import Ended
from roles.referee.yardstick import DISTURBED, ROUNDS, WARM_UPS, Yardstick
from tests.roles.referee.jobs import job_in

HAND_OVER_S = 0.001
S_PER_TOKEN = 1e-5
"""What the yardstick takes in these tests."""

PROCESSOR = 5

BEFORE = [1.0] * 2 * WARM_UPS
"""Trials of the yardstick before the first that counts, of two lengths."""

Speed = Callable[[], float]


class MadeUp:
    """A contestant whose trials take as long as told, and which notes the processors they were to run on."""

    def __init__(
        self, speed: Speed = lambda: 1.0, *, error: float = 0.0, hand_over: Speed = lambda: 1.0
    ) -> None:
        self._speed = speed
        self._error = error
        self._hand_over = hand_over
        self.processors: set[int | None] = set()

    def wait_ready(self) -> None:
        pass

    def run(self, sets: InputSets, *, processor: int | None = None, **_: Any) -> Trial:
        self.processors.add(processor)
        output = reference_output(sets.draw(0), torch.device("cpu")) * (1 + self._error)
        call_s = self._speed() * S_PER_TOKEN * sets.shape.length
        return Trial([output], HAND_OVER_S * self._hand_over() + sets.count * call_s, call_s)


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def job(tmp_path: Path) -> EvaluationJob:
    return job_in(tmp_path, sequence_length=100, trials_min=6, trials_max=6)


def beside(
    job: EvaluationJob,
    speed: Speed,
    *,
    hand_over: Speed = lambda: 1.0,
    error: float = 0.0,
    submission: MadeUp | None = None,
) -> Any:
    """Time a made-up submission beside the yardstick; returns the measurement and the yardstick."""
    drawing, clock = Drawing(job), Clock()
    shapes = [timed_shape(job, length) for length in drawing.lengths]
    made_up = MadeUp(speed, error=error, hand_over=hand_over)
    yardstick = Yardstick(
        made_up,  # type: ignore[arg-type]
        drawing,
        shapes,
        processor=PROCESSOR,
        clock=clock,
        sleep=clock.sleep,
    )
    yardstick.settle()
    assert made_up.processors == {PROCESSOR}
    measuring = Measuring(job, submission or MadeUp(lambda: 0.5), drawing, yardstick)  # type: ignore[arg-type]
    measuring.time()
    return measuring.measurements(), yardstick


def test_the_hand_over_is_taken_off(job: EvaluationJob) -> None:
    figures, yardstick = beside(job, lambda: 1.0)
    assert figures.tokens_per_sec == pytest.approx(1 / (0.5 * S_PER_TOKEN))
    assert figures.spread == pytest.approx(0.0, abs=1e-6)
    assert yardstick.credits_s() == pytest.approx([HAND_OVER_S] * 6)
    assert yardstick.evidence()["before_ns_per_token"] == pytest.approx([10_000.0] * ROUNDS)
    assert yardstick.evidence()["beside_ns_per_token"] == pytest.approx([10_000.0] * 6)
    yardstick.check_after()


def test_accuracy_is_held_against_the_yardsticks_on_the_same_inputs(job: EvaluationJob) -> None:
    figures, _ = beside(job, lambda: 1.0, error=0.02)
    assert figures.yardstick_relative_error == pytest.approx(0.02, rel=1e-3)


def test_a_busy_gpu_is_waited_for_and_then_nobodys_fault(job: EvaluationJob) -> None:
    calls = itertools.count()
    with pytest.raises(Ended, match="the GPU is not free") as caught:
        beside(job, lambda: 1.0 + next(calls) % 2)
    assert caught.value.status is Status.INFRASTRUCTURE
    # Warm-ups and one restless measurement; free from then on.
    speeds = iter([*BEFORE, *[1, 2] * ROUNDS][: len(BEFORE) + ROUNDS])
    figures, _ = beside(job, lambda: next(speeds, 1.0))
    assert figures.tokens_per_sec == pytest.approx(1 / (0.5 * S_PER_TOKEN))


def slow_beside(how_slow: float, afterwards: float) -> Speed:
    """Full speed by itself, then six trials beside the submission, then `afterwards`."""
    speeds = iter([*BEFORE, *[1.0] * ROUNDS, *[how_slow] * 6])
    return lambda: next(speeds, afterwards)


@pytest.mark.parametrize(
    ("how_slow", "afterwards", "status"),
    [
        (2.0, 1.0, Status.TAMPERED),
        (1.3, 1.02, Status.TAMPERED),
        (2.0, 2.0, Status.INFRASTRUCTURE),
        (1.3, 1.1, Status.INFRASTRUCTURE),
        (1.15, 1.0, Status.INFRASTRUCTURE),
    ],
)
def test_a_yardstick_that_was_slow_beside_the_submission(
    how_slow: float, afterwards: float, status: Status, job: EvaluationJob
) -> None:
    _, yardstick = beside(job, slow_beside(how_slow, afterwards))
    with pytest.raises(Ended, match=f"{how_slow - 1:.0%} slower beside") as caught:
        yardstick.check_after()
    assert caught.value.status is status


def test_calls_that_wait_for_their_launch_accuse_nobody(
    job: EvaluationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A tenth of a millisecond each; a busy processor triples them, by itself and beside the submission.
    monkeypatch.setitem(globals(), "S_PER_TOKEN", 1e-6)
    speeds = iter([*BEFORE, *[1.0, 3.0] * ROUNDS][: len(BEFORE) + ROUNDS])
    figures, yardstick = beside(job, lambda: next(speeds, 3.0))
    assert figures.tokens_per_sec == pytest.approx(1 / (0.5 * 1e-6))
    yardstick.check_after()


@pytest.mark.parametrize("kind", ["crash", "memory", "timeout", "tampered"])
@pytest.mark.parametrize("trials", [0, len(BEFORE) + ROUNDS + 1])
def test_a_yardstick_that_fails_is_nobodys_fault(kind: str, trials: int, job: EvaluationJob) -> None:
    left = iter(range(trials))

    def speed() -> float:
        if next(left, None) is None:
            raise CandidateFailed(kind, "the worker ended")
        return 1.0

    with pytest.raises(Ended, match="the yardstick failed") as caught:
        beside(job, speed)
    assert caught.value.status is Status.INFRASTRUCTURE
    assert caught.value.is_short_of_memory == (kind == "memory")


def test_a_gpu_that_is_busy_only_right_after_the_submission(job: EvaluationJob) -> None:
    speeds = iter([*BEFORE, *[1.0] * ROUNDS, *[1.0, 2.0] * 3])
    _, yardstick = beside(job, lambda: next(speeds, 1.0))
    with pytest.raises(Ended, match="100% slower beside") as caught:
        yardstick.check_after()
    assert caught.value.status is Status.TAMPERED


@pytest.mark.parametrize(
    ("trials", "is_disturbed"), [([1.4] * DISTURBED, True), ([1.4, 1.4, 1.0], False), ([1.2], False)]
)
def test_a_gpu_is_disturbed_when_several_trials_in_a_row_are_slow(
    trials: list[float], is_disturbed: bool, job: EvaluationJob
) -> None:
    speeds = iter([*BEFORE, *[1.0] * (ROUNDS + 6), *trials])
    _, yardstick = beside(job, lambda: next(speeds))
    assert yardstick.is_disturbed() is is_disturbed
    # They count neither as before the submission nor as beside it.
    assert len(yardstick.beside) == 6
    yardstick.check_after()


def test_a_little_slower_is_nothing(job: EvaluationJob) -> None:
    _, yardstick = beside(job, slow_beside(1.08, 1.0))
    yardstick.check_after()


def test_a_slower_hand_over_beside_the_submission_is_not_credited_to_it(job: EvaluationJob) -> None:
    hand_overs = iter([1.0] * (len(BEFORE) + ROUNDS))
    figures, yardstick = beside(job, lambda: 1.0, hand_over=lambda: next(hand_overs, 1.4))
    assert figures.tokens_per_sec == pytest.approx(1 / (0.5 * S_PER_TOKEN))
    assert yardstick.credits_s() == pytest.approx([HAND_OVER_S] * 6)
    # A faster one counts: less is taken off.
    hand_overs = iter([1.0] * (len(BEFORE) + ROUNDS))
    _, yardstick = beside(job, lambda: 1.0, hand_over=lambda: next(hand_overs, 0.9))
    assert yardstick.credits_s() == pytest.approx([0.9 * HAND_OVER_S] * 6)


def test_a_slower_hand_over_is_credited_as_far_as_it_varied_before(job: EvaluationJob) -> None:
    varying = iter([*[1.0] * len(BEFORE), *[0.9, 1.0, 1.1] * (ROUNDS // 3)])
    _, yardstick = beside(job, lambda: 1.0, hand_over=lambda: next(varying, 1.4))
    assert yardstick.overhead_spread_s == pytest.approx(0.2 * HAND_OVER_S)
    assert yardstick.credits_s() == pytest.approx([1.2 * HAND_OVER_S] * 6)


@pytest.mark.parametrize(("afterwards", "credited"), [(1.4, 1.4), (1.3, 1.3), (1.0, 1.0), (2.0, 1.4)])
def test_a_hand_over_that_stays_slow_without_the_submission_is_credited(
    afterwards: float, credited: float, job: EvaluationJob
) -> None:
    hand_overs = iter([*[1.0] * (len(BEFORE) + ROUNDS), *[1.4] * 6])
    _, yardstick = beside(job, lambda: 1.0, hand_over=lambda: next(hand_overs, afterwards))
    assert yardstick.credits_s() == pytest.approx([HAND_OVER_S] * 6)
    yardstick.check_after()
    assert yardstick.credits_s() == pytest.approx([credited * HAND_OVER_S] * 6)
    assert yardstick.evidence()["overhead_after_s"] == pytest.approx([afterwards * HAND_OVER_S] * ROUNDS)


def test_nothing_is_measured_again_when_nothing_was_slow(job: EvaluationJob) -> None:
    _, yardstick = beside(job, lambda: 1.0)
    yardstick.check_after()
    assert yardstick.evidence()["overhead_after_s"] == []


def test_what_takes_longer_for_both_does_not_show(job: EvaluationJob) -> None:
    # In the first round hand-overs are slow, in the second the yardstick's alone.
    slow = iter([*[1.0] * (len(BEFORE) + ROUNDS), 5.0, 9.0])
    theirs = iter([5.0])
    submission = MadeUp(lambda: 0.5, hand_over=lambda: next(theirs, 1.0))
    figures, _ = beside(job, lambda: 1.0, hand_over=lambda: next(slow, 1.0), submission=submission)
    assert figures.tokens_per_sec == pytest.approx(1 / (0.5 * S_PER_TOKEN))
    assert figures.spread == pytest.approx(0.0, abs=1e-6)


def test_submission_and_yardstick_have_the_same_processor(job: EvaluationJob) -> None:
    submission = MadeUp(lambda: 0.5)
    _, yardstick = beside(job, lambda: 1.0, submission=submission)
    assert submission.processors == {PROCESSOR}
    assert yardstick.evidence()["processor"] == PROCESSOR


def test_an_operator_that_drowns_in_the_hand_over_has_no_figure(
    job: EvaluationJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Yardstick, "overhead_spread_s", property(lambda self: 1.0))
    with pytest.raises(Ended, match="too short to be measured") as caught:
        beside(job, lambda: 1.0)
    assert caught.value.status is Status.INFRASTRUCTURE
