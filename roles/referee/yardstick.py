"""The yardstick: our pinned kernel and an operator that does nothing, timed in turn with a submission.

The operator that does nothing gives what a trial costs besides the operator; the pinned kernel shows whether
the GPU was free and as fast as before, and how exact bfloat16 arithmetic is on the very same inputs.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from kernels.export import export_files
from kernels.harness.accuracy import compare
from kernels.harness.inputs import Shape
from kernels.harness.session import CandidateFailed
from protocol.verdicts import Status
from roles.referee.contestant import Contestant
from roles.referee.drawing import Drawing, Drawn
from roles.referee.stages import Ended

ROUNDS: Final = 5
"""Trials that make one measurement of the yardstick by itself."""
PATIENCE_S: Final = 120.0
STEADY: Final = 0.10
"""Largest spread, and largest slowing down beside a submission, of a GPU that is nobody else's."""
ACCUSING: Final = 0.25
"""A submission is accused from this slowing down on: far above what heat and chance do."""
RECOVERED: Final = 0.05
CLEARING_S: Final = 2.0
IDLE_TRIALS: Final = 2
"""Trials that do nothing for each of the yardstick's: they cost little."""
IDLE_OPERATOR: Final = "fused_recurrent_quasar"


def yardstick_files() -> dict[str, str]:
    """Return the tree of the yardstick's worker; its sequential operator is one that does nothing."""
    idle = (
        "import torch\n\n\n"
        f"def {IDLE_OPERATOR}(q, k, v, beta, **kwargs):\n    return torch.empty_like(v), None\n"
    )
    return {**export_files("chunk"), "fused_recurrent.py": idle}


class Yardstick:
    """Times of the yardstick before, beside and after a submission."""

    def __init__(
        self,
        contestant: Contestant,
        drawing: Drawing,
        shapes: Sequence[Shape],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._contestant = contestant
        self._drawing = drawing
        self._shapes = shapes
        self._clock = clock
        self._sleep = sleep
        self.sets = 1
        """Calls of one of its trials."""
        self._quiet = _Alone()
        self._idle_s: dict[int, list[float]] = {}
        """Trials that did nothing beside the submission, by the number of sets that were handed over."""
        self._beside: list[float] = []
        """Seconds per token."""
        self.relative_error = 0.0
        """The largest on the inputs of the timed trials."""

    def settle(self) -> None:
        """Warm up, then measure by itself until the GPU is steady.

        Raises:
            Ended: infrastructure, it is not, or the yardstick failed.
        """
        with _nobodys_fault():
            self._contestant.wait_ready()
        for shape in self._shapes:
            self._measure_alone([shape])
        first = self._shapes[0]
        per_token = statistics.median(self._measure_alone([first] * 3).per_token)
        self.sets = self._drawing.sets_for(first, per_token * first.length)
        self._measure_alone(self._shapes)
        give_up_at = self._clock() + PATIENCE_S
        while True:
            self._quiet = self.measure()
            spread, median = _spread(self._quiet.per_token), statistics.median(self._quiet.per_token)
            if spread <= max(STEADY * median, self._noise()):
                return
            if self._clock() > give_up_at:
                raise Ended(
                    Status.INFRASTRUCTURE,
                    f"the GPU is not free: the yardstick's times vary by {spread / median:.0%}",
                )
            self._sleep(1.0)

    def measure(self) -> "_Alone":
        """Measure the yardstick by itself."""
        return self._measure_alone([self._shapes[index % len(self._shapes)] for index in range(ROUNDS)])

    def idle(self, drawn: Drawn, sets: int) -> None:
        """Time the operator that does nothing, with as many sets as the submission gets."""
        self._idle_s.setdefault(sets, []).extend(self._idle(drawn, sets) for _ in range(IDLE_TRIALS))

    def trial(self, drawn: Drawn) -> None:
        """Time the yardstick on a submission's inputs, beside it."""
        with _nobodys_fault():
            trial = self._contestant.run(drawn.sets(self.sets))
        net = trial.seconds - self._quiet.overhead_s
        self._beside.append(net / (self.sets * drawn.shape.length))
        error = compare(trial.outputs[0].float(), drawn.reference(0)).relative_error
        self.relative_error = max(self.relative_error, error)

    def overhead_s(self, sets: int) -> float:
        """Return what a trial takes besides the calls, in seconds.

        Hardly more than before the submission was there: one that slows down the hand-over must not be
        credited with it.
        """
        beside, before = self._idle_s.get(sets), self._quiet.overhead_s
        return min(statistics.median(beside), before + self.overhead_spread_s) if beside else before

    @property
    def overhead_spread_s(self) -> float:
        """Interquartile range of that, before the submission was there."""
        return _spread(self._quiet.idle_s)

    def slowing(self) -> float:
        """By how much the yardstick was slower beside the submission than before it; 0 within the noise."""
        return self._slowing(self._beside)

    def check_after(self) -> None:
        """Measure again, now that the submission is gone, when the yardstick was slow beside it.

        Raises:
            Ended: tampered, the submission kept the GPU busy outside its turn; infrastructure, it was
                somebody else, or the heat.
        """
        slowing = self.slowing()
        if slowing <= STEADY:
            return
        # The driver clears up after the submission's worker.
        self._sleep(CLEARING_S)
        after = self._slowing(self.measure().per_token)
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
            "overhead_s": round(self._quiet.overhead_s, 7),
            "overhead_beside_s": {
                sets: round(statistics.median(values), 7) for sets, values in self._idle_s.items()
            },
            "overhead_spread_s": round(self.overhead_spread_s, 7),
            "before_ns_per_token": _rounded(self._quiet.per_token),
            "beside_ns_per_token": _rounded(self._beside),
            "relative_error": self.relative_error,
        }

    def _measure_alone(self, shapes: Sequence[Shape]) -> "_Alone":
        """Time the yardstick and what does nothing on each of the shapes."""
        alone, runs = _Alone(), []
        for shape in shapes:
            drawn = self._drawing.draw_unrecorded(shape, count=self.sets)
            alone.idle_s += [self._idle(drawn, self.sets) for _ in range(IDLE_TRIALS)]
            with _nobodys_fault():
                seconds = self._contestant.run(drawn.sets(self.sets)).seconds
            runs.append((seconds, self.sets * shape.length))
        alone.per_token = [(seconds - alone.overhead_s) / tokens for seconds, tokens in runs]
        return alone

    def _idle(self, drawn: Drawn, sets: int) -> float:
        with _nobodys_fault():
            return self._contestant.run(drawn.blank_sets(sets), calls=1, operator=IDLE_OPERATOR).seconds

    def _slowing(self, per_token: Sequence[float]) -> float:
        if not per_token:
            return 0.0
        before, now = statistics.median(self._quiet.per_token), statistics.median(per_token)
        return now / before - 1.0 if now - before > self._noise() else 0.0

    def _noise(self) -> float:
        """Seconds per token that the measurement itself varies by."""
        return 3.0 * self.overhead_spread_s / (self.sets * min(shape.length for shape in self._shapes))


@dataclass(slots=True)
class _Alone:
    """One measurement of the yardstick by itself."""

    idle_s: list[float] = field(default_factory=list)
    """Trials that did nothing."""
    per_token: list[float] = field(default_factory=list)
    """Seconds per token of the trials that did something, without the hand-over."""

    @property
    def overhead_s(self) -> float:
        return statistics.median(self.idle_s)


@contextmanager
def _nobodys_fault() -> Iterator[None]:
    """It is our own kernel: whatever ails it, no submission answers for it."""
    try:
        yield
    except CandidateFailed as failure:
        raise Ended(Status.INFRASTRUCTURE, f"the yardstick failed: {failure}") from failure


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


def _rounded(seconds_per_token: Sequence[float]) -> list[float]:
    return [round(1e9 * value, 4) for value in seconds_per_token]
