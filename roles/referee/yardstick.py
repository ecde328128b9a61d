"""The yardstick: our pinned kernel in a worker of its own, timed in turn with a submission.

That worker runs nobody else's code and says how long the GPU took for a call. What its trials took beyond
their calls is the hand-over, which the submission's trials have as well. And it shows whether the GPU was
free and as fast as before, and how exact bfloat16 arithmetic is on the very same inputs.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from kernels.harness.accuracy import compare
from kernels.harness.inputs import Shape
from kernels.harness.session import CandidateFailed, Trial
from protocol.verdicts import Status
from roles.referee.contestant import Contestant
from roles.referee.drawing import Drawing, Drawn
from roles.referee.quartiles import spread, typical
from roles.referee.stages import Ended

ROUNDS: Final = 15
"""Trials that make one measurement of the yardstick by itself."""
WARM_UPS: Final = 2
"""Of each length, before the first trial that counts."""
PATIENCE_S: Final = 120.0
STEADY: Final = 0.10
"""Largest spread, and largest slowing down beside a submission, of a GPU that is nobody else's."""
ACCUSING: Final = 0.25
"""A submission is accused from this slowing down on: far above what heat and chance do."""
RECOVERED: Final = 0.05
LAUNCH_S: Final = 0.25e-3
"""A shorter call waits for its own launch: its time speaks of the processor, and nobody is accused by it."""
CLEARING_S: Final = 2.0
"""The driver clears up after a submission's worker."""
DISTURBED: Final = 3
"""Trials in a row that must be slow: one may be by chance."""


class Yardstick:
    """Times of the yardstick before, beside and after a submission."""

    def __init__(
        self,
        contestant: Contestant,
        drawing: Drawing,
        shapes: Sequence[Shape],
        *,
        processor: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._contestant = contestant
        self._drawing = drawing
        self._shapes = shapes
        self.processor = processor
        """Of its trials, and of those that are compared with them."""
        self._clock = clock
        self._sleep = sleep
        # As many as a trial beside a submission has at most: handing over more takes longer.
        self.sets = min(drawing.most_sets(shape) for shape in shapes)
        """Calls of each of its trials."""
        self._quiet = _Trials()
        self._beside = _Trials()
        self._after = _Trials()
        """Once it is gone, if that was asked."""
        self._right_after: list[float] = []
        """Seconds per token of those that came right after a trial of the submission."""
        self.relative_error = 0.0
        """The largest on the inputs of the timed trials."""

    def settle(self) -> None:
        """Warm up, then measure by itself until the GPU is steady.

        Raises:
            Ended: infrastructure, it is not, or the yardstick failed.
        """
        with _nobodys_fault():
            self._contestant.wait_ready()
        for _ in range(WARM_UPS):
            self._measure_alone(self._shapes)
        give_up_at = self._clock() + PATIENCE_S
        while True:
            self._quiet = self.measure()
            varies, per_token = spread(self._quiet.per_token), typical(self._quiet.per_token)
            if varies <= max(STEADY * per_token, self._noise()):
                return
            if self._clock() > give_up_at:
                raise Ended(
                    Status.INFRASTRUCTURE,
                    f"the GPU is not free: the yardstick's times vary by {varies / per_token:.0%}",
                )
            self._sleep(1.0)

    def measure(self) -> "_Trials":
        """Measure the yardstick by itself."""
        return self._measure_alone([self._shapes[index % len(self._shapes)] for index in range(ROUNDS)])

    def run(self, drawn: Drawn, *, right_after: bool = False) -> Trial:
        """Time the yardstick on a submission's inputs, beside it or right after it."""
        trial = self._run(drawn, into=self._beside)
        if right_after:
            self._right_after.append(self._beside.per_token[-1])
        return trial

    def compare(self, trial: Trial, drawn: Drawn) -> None:
        """Take note of its error on those inputs."""
        error = compare(trial.outputs[0].float(), drawn.reference(0)).relative_error
        self.relative_error = max(self.relative_error, error)

    @property
    def overhead_s(self) -> float:
        """Return what a trial took besides the calls before the submission was there, in seconds."""
        return typical(self._quiet.overhead_s)

    def credits_s(self) -> list[float]:
        """Return what is taken off a submission's trials, in seconds: for each what the one beside it took.

        On the whole hardly more than without the submission: one that slows down the hand-over must not be
        credited with it.
        """
        excess_s = self._excess_s()
        return [seconds - excess_s for seconds in self._beside.overhead_s]

    def _excess_s(self) -> float:
        """By how much more the hand-over took beside the submission than it varies by without it."""
        beside, alone = self._beside.overhead_s, (self._quiet.overhead_s, self._after.overhead_s)
        if not beside:
            return 0.0
        longest = max(statistics.median(seconds) for seconds in alone if seconds)
        return max(0.0, statistics.median(beside) - longest - self.overhead_spread_s)

    @property
    def overhead_spread_s(self) -> float:
        """Interquartile range of that, before the submission was there."""
        return spread(self._quiet.overhead_s)

    @property
    def beside(self) -> Sequence[float]:
        """Seconds per token of its trials beside a submission, in their order."""
        return self._beside.per_token

    def slowing(self) -> float:
        """By how much the yardstick was slower beside the submission than before it; 0 within the noise."""
        return max(self.slowing_in(self._beside.per_token), self.slowing_in(self._right_after))

    def slowing_in(self, per_token: Sequence[float]) -> float:
        """By how much it was slower in some of its trials than before; 0 within the noise."""
        if not per_token:
            return 0.0
        before, now = typical(self._quiet.per_token), typical(per_token)
        return now / before - 1.0 if now - before > self._noise() else 0.0

    def is_disturbed(self) -> bool:
        """Try whether it is now far slower by itself than before the submission."""
        return all(
            self.slowing_in(self._measure_alone(self._shapes[:1]).per_token) > ACCUSING
            for _ in range(DISTURBED)
        )

    def wait_for_clearing(self) -> None:
        """Wait until nothing of a submission that has just ended is left on the GPU."""
        self._sleep(CLEARING_S)

    def expect_working(self) -> None:
        """Make sure that the GPU still computes, now that a submission has failed on it.

        Raises:
            Ended: infrastructure, it does not; whoever had its turn when it died answers for nothing.
        """
        self.wait_for_clearing()
        self._run(self._drawing.draw_unrecorded(self._shapes[0], count=1), into=_Trials())

    def check_after(self) -> None:
        """Measure again, now that the submission is gone, if yardstick or hand-over was slow beside it.

        Raises:
            Ended: tampered, the submission kept the GPU busy outside its turn; infrastructure, it was
                somebody else, or the heat.
        """
        slowing = self.slowing()
        if slowing <= STEADY and not self._excess_s():
            return
        self.wait_for_clearing()
        self._after = self.measure()
        if slowing <= STEADY:
            return
        after = self.slowing_in(self._after.per_token)
        if slowing > ACCUSING and after <= RECOVERED:
            raise Ended(
                Status.TAMPERED,
                f"the GPU was busy outside the submission's turns: the yardstick was {slowing:.0%} slower "
                "beside it than before, and as fast as before once it was gone",
            )
        raise Ended(
            Status.INFRASTRUCTURE,
            f"the GPU was not free or got hot: the yardstick was {slowing:.0%} slower beside the submission "
            f"than before, and {after:.0%} afterwards",
        )

    def evidence(self) -> dict[str, object]:
        """What a verdict shows of it."""
        return {
            "calls": self.sets,
            "processor": self.processor,
            "overhead_before_s": _rounded(self._quiet.overhead_s, 7),
            "overhead_beside_s": _rounded(self._beside.overhead_s, 7),
            "overhead_after_s": _rounded(self._after.overhead_s, 7),
            "before_ns_per_token": _rounded([1e9 * value for value in self._quiet.per_token], 4),
            "beside_ns_per_token": _rounded([1e9 * value for value in self._beside.per_token], 4),
            "right_after_ns_per_token": _rounded([1e9 * value for value in self._right_after], 4),
            "relative_error": self.relative_error,
        }

    def _measure_alone(self, shapes: Sequence[Shape]) -> "_Trials":
        """Time the yardstick on each of the shapes."""
        alone = _Trials()
        for shape in shapes:
            self._run(self._drawing.draw_unrecorded(shape, count=self.sets), into=alone)
        return alone

    def _run(self, drawn: Drawn, *, into: "_Trials") -> Trial:
        """Run one trial of all sets that are drawn."""
        sets = len(drawn.seeds)
        with _nobodys_fault():
            trial = self._contestant.run(drawn.sets(sets), timed=True, processor=self.processor)
        assert trial.call_s is not None
        into.per_token.append(trial.call_s / drawn.shape.length)
        into.overhead_s.append(trial.seconds - sets * trial.call_s)
        # One is compared; the others are gigabytes.
        del trial.outputs[1:]
        return trial

    def _noise(self) -> float:
        """Seconds per token that the measurement itself varies by."""
        shortest = min(shape.length for shape in self._shapes)
        if typical(self._quiet.per_token) * shortest < LAUNCH_S:
            return math.inf
        return 3.0 * self.overhead_spread_s / (self.sets * shortest)


@dataclass(slots=True)
class _Trials:
    """What trials of the yardstick took."""

    per_token: list[float] = field(default_factory=list)
    """Seconds, by the GPU's account."""
    overhead_s: list[float] = field(default_factory=list)
    """By the clock, without the calls."""


@contextmanager
def _nobodys_fault() -> Iterator[None]:
    """It is our own kernel: whatever ails it, no submission answers for it."""
    try:
        yield
    except CandidateFailed as failure:
        raise Ended(
            Status.INFRASTRUCTURE,
            f"the yardstick failed: {failure}",
            is_short_of_memory=failure.kind == "memory",
        ) from failure


def _rounded(values: Sequence[float], digits: int) -> list[float]:
    return [round(value, digits) for value in values]
