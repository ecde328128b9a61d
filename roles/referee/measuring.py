"""Probes and timed trials of one worker.

On a CPU the referee's clock covers the operator and little else. On a GPU it also covers mapping the inputs
and copying the output inside the GPU: the same with an operator that does nothing is measured first and taken
off. What is left must stand out of the noise of that, else there is no figure.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from kernels.harness.accuracy import Accuracy, compare, reference_output, yardstick_error
from kernels.harness.inputs import Shape, draw_inputs
from kernels.harness.session import Session, Trial
from protocol.judging import Measurements
from protocol.messages import EvaluationJob
from protocol.rules import MAX_ABS_DIFFERENCE, MIN_COSINE_SIMILARITY
from protocol.verdicts import Status
from roles.referee.stages import Ended

PROBE_LENGTH: Final = 50
REPEAT_TOLERANCE: Final = 1e-3
"""Largest relative difference between two runs on the same inputs."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a trial takes besides the operator: the median, and the interquartile range around it."""

    seconds: float = 0.0
    spread_s: float = 0.0


@dataclass(slots=True)
class Findings:
    """What the trials gave so far."""

    accuracy: Accuracy | None = None
    yardstick_error: float = 0.0
    seconds: list[float] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)

    def add(self, accuracy: Accuracy, yardstick: float) -> None:
        """Keep the worst accuracy and the largest error of the yardstick."""
        self.accuracy = accuracy if self.accuracy is None else self.accuracy.worse_of(accuracy)
        self.yardstick_error = max(self.yardstick_error, yardstick)


def trial_shape(job: EvaluationJob) -> Shape:
    """Return the layer's shape in the job's profile."""
    if job.profile == "cpu":
        # float32: bfloat16 dots are wrong in the interpreter.
        return Shape(batch=1, length=job.sequence_length, heads=2, dim=32, dtype="float32")
    return Shape(batch=1, length=job.sequence_length, heads=8, dim=64, dtype="bfloat16")


class Measuring:
    """Runs a worker's operator on fresh inputs and compares every output with the reference."""

    def __init__(self, job: EvaluationJob, session: Session) -> None:
        self._job = job
        self._session = session
        self._device = torch.device(job.device)
        self._rows = np.random.default_rng(int.from_bytes(os.urandom(8), "little"))
        self.findings = Findings()

    def probe(self) -> None:
        """Untimed: the real shape, it again, odd lengths, a batch, packed sequences, the other operator.

        Raises:
            Ended: wrong_output, nan_or_inf, inconsistent. CandidateFailed: the worker failed.
        """
        shape = trial_shape(self._job)
        first = self._checked(shape, "the timed shape")
        again, inputs = first
        repeated = self._session.run(inputs, shape, self._rows).output
        difference = float((repeated - again.output).norm() / again.output.norm())
        if not difference <= REPEAT_TOLERANCE:
            raise Ended(Status.INCONSISTENT, f"two runs on the same inputs differ by {difference:.1e}")
        small = {"heads": shape.heads, "dim": shape.dim, "dtype": shape.dtype}
        self._checked(Shape(batch=1, length=PROBE_LENGTH, **small), f"length {PROBE_LENGTH}")
        self._checked(Shape(batch=2, length=PROBE_LENGTH, **small), "a batch of 2")
        self._checked(
            Shape(batch=1, length=PROBE_LENGTH, **small), "packed sequences", cu_seqlens=[0, 17, PROBE_LENGTH]
        )
        self._checked(
            Shape(batch=1, length=PROBE_LENGTH, **small),
            "fused_recurrent_quasar",
            operator="fused_recurrent_quasar",
        )

    def time(self, overhead: Overhead, *, clock: Callable[[], float] = time.monotonic) -> Measurements:
        """Run the timed trials within their budget; every output is checked.

        Raises:
            CandidateFailed: the worker failed. Ended: infrastructure, the overhead drowns the operator.
        """
        shape = trial_shape(self._job)
        started = clock()
        while len(self.findings.seconds) < self._job.trials_max:
            enough = len(self.findings.seconds) >= self._job.trials_min
            if enough and clock() - started > self._job.time_budget_s:
                break
            trial, _ = self._trial(shape)
            self.findings.seconds.append(trial.seconds - overhead.seconds)
        median = statistics.median(self.findings.seconds)
        if not median > overhead.spread_s:
            raise Ended(
                Status.INFRASTRUCTURE,
                f"the operator takes {median:.2e} s beside {overhead.seconds:.2e} s for mapping and copying, "
                f"which vary by {overhead.spread_s:.2e} s: too short to be measured here",
            )
        return self._measurements(shape, median)

    def overhead(self) -> Overhead:
        """Measure trials of an operator that does nothing."""
        shape = trial_shape(self._job)
        inputs = draw_inputs(shape, self._generator())
        # The first one also loads what the worker needs for any.
        self._session.run(inputs, shape, self._rows)
        seconds = [
            self._session.run(inputs, shape, self._rows).seconds for _ in range(self._job.trials_min + 2)
        ]
        low, median, high = statistics.quantiles(seconds, n=4)
        return Overhead(median, high - low)

    def _measurements(self, shape: Shape, median: float) -> Measurements:
        accuracy = self.findings.accuracy
        assert accuracy is not None
        quartiles = (
            statistics.quantiles(self.findings.seconds, n=4)
            if len(self.findings.seconds) > 1
            else [median] * 3
        )
        return Measurements(
            cosine_similarity=accuracy.cosine_similarity,
            max_abs_diff=accuracy.max_abs_diff,
            relative_error=accuracy.relative_error,
            yardstick_relative_error=self.findings.yardstick_error,
            tokens_per_sec=shape.batch * shape.length / median,
            spread=(quartiles[2] - quartiles[0]) / median,
        )

    def _trial(self, shape: Shape, *, operator: str = "chunk_quasar", cu_seqlens: list[int] | None = None):  # type: ignore[no-untyped-def]
        inputs = draw_inputs(shape, self._generator())
        trial: Trial = self._session.run(inputs, shape, self._rows, operator=operator, cu_seqlens=cu_seqlens)
        reference = reference_output(inputs, self._device, cu_seqlens)
        output = trial.output.to(self._device)
        self.findings.add(compare(output, reference), yardstick_error(inputs, shape, reference, cu_seqlens))
        return trial, inputs

    def _checked(self, shape: Shape, what: str, **options: object):  # type: ignore[no-untyped-def]
        """One untimed run that must meet the subnet's thresholds."""
        result = self._trial(shape, **options)
        accuracy = self.findings.accuracy
        assert accuracy is not None
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
        return result

    def _generator(self) -> torch.Generator:
        used = len(self.findings.seeds)
        given = self._job.seeds[used : used + 1]
        seed = given[0] if given else int.from_bytes(os.urandom(7), "little")
        self.findings.seeds.append(seed)
        return torch.Generator(self._device).manual_seed(seed)
