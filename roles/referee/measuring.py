"""Probes and timed trials of a submission.

On a CPU the referee's clock covers the operator and little else. On a GPU it also covers the hand-over: what
the yardstick's took beside its calls is taken off, and what is left must stand out of the noise of it.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from kernels.harness.accuracy import Accuracy, compare, rounding_error
from kernels.harness.inputs import Shape, spliced
from kernels.harness.session import Trial
from kernels.harness.trusted_layer import TrustedLayer
from protocol.judging import Measurements
from protocol.messages import EvaluationJob
from protocol.rules import MAX_ABS_DIFFERENCE, MIN_COSINE_SIMILARITY
from protocol.verdicts import Status
from roles.referee.contestant import Contestant
from roles.referee.drawing import Drawing, Drawn, timed_shape
from roles.referee.quartiles import spread, typical
from roles.referee.stages import Ended
from roles.referee.yardstick import Yardstick

PROBE_LENGTH: Final = 50
PACKED: Final = [0, 17, PROBE_LENGTH]
PARTS: Final = [0, 17, 18, PROBE_LENGTH]
"""A single token among them, as in decoding."""
QUICK_S: Final = 0.25
"""A call that takes longer is not tried several times in a row."""
REPEAT_TOLERANCE: Final = 1e-3
"""Largest relative difference between two runs on the same inputs."""
BEFORE_OTHERS: Final = 16
"""Tokens in which it shows whether they depend on later ones: the nearest, as some see no further."""


@dataclass(slots=True)
class Findings:
    """What probes and trials gave so far."""

    accuracy: Accuracy | None = None
    rounding_error: float = 0.0
    """What rounding to bfloat16 alone makes; no submission is held to less than a multiple of it."""
    lengths: list[int] = field(default_factory=list)
    """Of the timed trials."""
    seconds: list[float] = field(default_factory=list)
    """Of the timed trials, by the clock."""


class Measuring:
    """Runs a submission's operator on fresh inputs and compares every output with the reference.

    `after_trial` is called after each: it may look at what the worker holds of the GPU.
    """

    def __init__(
        self,
        job: EvaluationJob,
        contestant: Contestant,
        drawing: Drawing,
        yardstick: Yardstick | None = None,
        *,
        after_trial: Callable[[], None] = lambda: None,
    ) -> None:
        self._job = job
        self._contestant = contestant
        self._drawing = drawing
        self._yardstick = yardstick
        self._after_trial = after_trial
        self.calls = 1
        """Of the operator in each timed trial."""
        self.findings = Findings()

    def probe(self) -> None:
        """Untimed: a timed shape and it again, then what else the contract says, in small shapes.

        Raises:
            Ended: wrong_output, nan_or_inf, inconsistent. CandidateFailed: the worker failed.
        """
        shapes = [timed_shape(self._job, length) for length in self._drawing.lengths]
        first = self._drawing.draw(shapes[0])
        output = self._checked(first, "a timed shape").outputs[0].float()
        again = self._contestant.run(first.sets(1))
        difference = float((again.outputs[0].float() - output).norm() / output.norm())
        if not difference <= REPEAT_TOLERANCE:
            raise Ended(Status.INCONSISTENT, f"two runs on the same inputs differ by {difference:.1e}")
        self._probe_causality(first, output)
        self._probe_contract(shapes[0])
        if self._yardstick is not None and again.seconds < QUICK_S:
            overhead_s = self._yardstick.overhead_s
            # The trials that count them are run with several, and may be what finds it wrong.
            self.calls = counted_by = self._drawing.sets_for(shapes[0], again.seconds - overhead_s)
            self.calls = self._calls_for_a_trial(shapes[0], overhead_s)
            if self.calls <= counted_by:
                shapes = shapes[1:]
        # Each length as it will be timed: autotuners are keyed by it, and memory is taken once.
        for shape in shapes:
            self._checked(self._drawing.draw(shape, count=self.calls), "a timed shape")

    def _probe_causality(self, first: Drawn, output: torch.Tensor) -> None:
        """Replace tokens at the end of `first`: what it gave before them, in `output`, must stay."""
        # Odd: inside a chunk of whatever size.
        start = 2 * first.shape.length // 3 | 1
        other = self._drawing.draw(first.shape)
        drawn = replace(
            first,
            draw=lambda shape, generator: spliced(first.draw(shape, generator), other.inputs(0), start),
        )
        [o] = self._checked(drawn, f"a timed shape with other tokens from {start} on").outputs
        before = slice(max(0, start - BEFORE_OTHERS), start)
        difference = float((o[:, before].float() - output[:, before]).norm() / output[:, before].norm())
        if not difference <= REPEAT_TOLERANCE:
            raise Ended(
                Status.WRONG_OUTPUT,
                f"o before token {start} differs by {difference:.1e} with other tokens from there on: "
                "it must depend on earlier ones alone",
            )

    def _probe_contract(self, timed: Shape) -> None:
        """Try what nobody times: other lengths, batches, packed sequences, states, a whole layer."""
        one = replace(timed, length=PROBE_LENGTH)
        two = replace(one, batch=2)
        draw = self._drawing.draw
        self._checked(draw(one), f"length {PROBE_LENGTH}")
        self._checked(draw(two), "a batch of 2")
        self._checked(draw(one, PACKED), "packed sequences")
        self._checked(draw(two), "a batch of 2 in parts, from state to state", parts=PARTS)
        recurrent = "fused_recurrent_quasar"
        self._checked(draw(one), recurrent, operator=recurrent)
        self._checked(
            draw(two), f"{recurrent} in parts, from state to state", operator=recurrent, parts=PARTS
        )
        self._probe_layer(draw(one))

    def _probe_layer(self, drawn: Drawn) -> None:
        """Compare what a layer, drawn from the seed, makes of the operator's o and of the reference."""
        layer = TrustedLayer.draw(drawn.shape, drawn.generator(0))
        inputs = layer.inputs()
        drawn = replace(drawn, draw=lambda _shape, _generator: inputs)
        [o] = self._checked(drawn, "what a layer hands to its operator").outputs
        self._expect_right(compare(layer.output(o), layer.output(drawn.reference(0))), "a layer's output")

    def _calls_for_a_trial(self, shape: Shape, overhead_s: float) -> int:
        """Return how many calls make a trial long enough, by trials of as many as are known so far."""
        # The first takes memory, and either may be disturbed: that only makes it longer.
        seconds = min(
            self._checked(self._drawing.draw(shape, count=self.calls), "a timed shape").seconds
            for _ in range(2)
        )
        return self._drawing.sets_for(shape, (seconds - overhead_s) / self.calls)

    def time(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Run the timed trials within their budget; every output is checked.

        Raises:
            CandidateFailed: the worker failed. Ended: what `after_trial` found.
        """
        started = clock()
        while len(self.findings.seconds) < self._job.trials_max:
            done = len(self.findings.seconds)
            if done >= self._job.trials_min and clock() - started > self._job.time_budget_s:
                break
            self._round(done)

    def _round(self, number: int) -> None:
        """Run one timed trial. Its outputs, gigabytes, are gone before the next one's are there."""
        yardstick = self._yardstick
        length = self._drawing.lengths[number % len(self._drawing.lengths)]
        # Both get the same number of sets: handing over more takes longer.
        sets = max(self.calls, yardstick.sets if yardstick is not None else 1)
        drawn = self._drawing.draw(timed_shape(self._job, length), count=sets)
        if yardstick is None:
            self.compare(self.timed(drawn), drawn)
            return
        # They change places from round to round, so that a drift hits both alike. Comparing comes after both,
        # so that as little as can be lies between them.
        if number % 2 == 0:
            beside, trial = yardstick.run(drawn), self.timed(drawn)
        else:
            trial, beside = self.timed(drawn), yardstick.run(drawn, right_after=True)
        yardstick.compare(beside, drawn)
        self.compare(trial, drawn)

    def trial_s(self) -> list[float]:
        """Seconds of one call in each timed trial that is complete, as if it had had the job's length."""
        seconds, lengths = self.findings.seconds, self.findings.lengths
        credits_s = [0.0] * len(seconds) if self._yardstick is None else self._yardstick.credits_s()
        # The evidence of an evaluation that ended in between has one more of one than of the other.
        return [
            (taken - credited) / self.calls * self._job.sequence_length / length
            for taken, credited, length in zip(seconds, credits_s, lengths, strict=False)
        ]

    def evidence(self) -> dict[str, object]:
        """What a verdict shows of its trials."""
        return {"calls": self.calls, "trial_s": [round(seconds, 7) for seconds in self.trial_s()]}

    def timed(self, drawn: Drawn) -> Trial:
        """Run one timed trial, of as many of the sets as it makes calls.

        Raises:
            CandidateFailed: the worker failed. Ended: what `after_trial` found.
        """
        trial = self._contestant.run(
            drawn.sets(len(drawn.seeds)),
            calls=self.calls,
            processor=self._yardstick.processor if self._yardstick is not None else None,
        )
        self._after_trial()
        self.findings.seconds.append(trial.seconds)
        self.findings.lengths.append(drawn.shape.length)
        return trial

    def measurements(self) -> Measurements:
        """Return what the timed trials amount to.

        Raises:
            Ended: infrastructure, the hand-over drowns the operator.
        """
        accuracy, seconds = self.findings.accuracy, self.trial_s()
        assert accuracy is not None
        # A disturbance makes a trial longer, and one beside it the difference shorter as well.
        call_s = typical(seconds) if self._yardstick is None else statistics.median(seconds)
        error = self.findings.rounding_error
        if self._yardstick is not None:
            error = max(error, self._yardstick.relative_error)
            noise_s = self._yardstick.overhead_spread_s / self.calls
            if not call_s > noise_s:
                raise Ended(
                    Status.INFRASTRUCTURE,
                    f"a call takes {call_s:.2e} s, and its share of the hand-over varies by {noise_s:.2e} s: "
                    "too short to be measured here",
                )
        return Measurements(
            cosine_similarity=accuracy.cosine_similarity,
            max_abs_diff=accuracy.max_abs_diff,
            relative_error=accuracy.relative_error,
            yardstick_relative_error=error,
            tokens_per_sec=self._job.sequence_length / call_s,
            spread=spread(seconds) / call_s,
        )

    def _checked(
        self, drawn: Drawn, what: str, *, operator: str = "chunk_quasar", parts: list[int] | None = None
    ) -> Trial:
        """One untimed trial of all sets, which must meet the subnet's thresholds."""
        trial = self._contestant.run(
            drawn.sets(len(drawn.seeds)), operator=operator, cu_seqlens=drawn.cu_seqlens, parts=parts
        )
        self._after_trial()
        self._expect_right(self.compare(trial, drawn), what)
        return trial

    def _expect_right(self, accuracy: Accuracy, what: str) -> None:
        if accuracy.relative_error != accuracy.relative_error:
            raise Ended(Status.NAN_OR_INF, f"o holds NaN or infinity on {what}")
        if not (
            accuracy.cosine_similarity >= MIN_COSINE_SIMILARITY
            and accuracy.max_abs_diff <= MAX_ABS_DIFFERENCE
        ):
            raise Ended(
                Status.WRONG_OUTPUT,
                f"on {what}: cosine similarity {accuracy.cosine_similarity:.4f}, largest difference "
                f"{accuracy.max_abs_diff:.3g} (allowed: {MIN_COSINE_SIMILARITY}, {MAX_ABS_DIFFERENCE})",
            )

    def compare(self, trial: Trial, drawn: Drawn) -> Accuracy:
        """Return the worst accuracy of the trial's outputs, and keep the worst of all."""
        found, worst = self.findings, None
        for number, output in enumerate(trial.outputs):
            reference = drawn.reference(number, trial.outputs[number - 1] if number else None)
            accuracy = compare(output.float(), reference)
            worst = accuracy if worst is None else worst.worse_of(accuracy)
            found.rounding_error = max(found.rounding_error, rounding_error(reference))
        assert worst is not None
        found.accuracy = worst if found.accuracy is None else found.accuracy.worse_of(worst)
        return worst
