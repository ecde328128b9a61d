"""What a submission is measured on: jittered lengths, recorded seeds, inputs with their exact results."""

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from kernels.harness.accuracy import reference_output
from kernels.harness.buffers import MAX_CALLS
from kernels.harness.inputs import Inputs, InputSets, Shape, chained_beta, draw_inputs
from protocol.messages import EvaluationJob

JITTER_STEP: Final = 64
JITTER_STEPS: Final = {"gpu": 16, "cpu": 2}
"""Lengths lie above the target by fewer steps than this; the interpreter's time grows with the length."""
LENGTHS: Final = {"gpu": 3, "cpu": 2}
TRIAL_S: Final = 0.02
"""Calls follow one another in a trial until they take about this long: ten times the hand-over."""
MEMORY_SHARE: Final = 5
"""All sets of a trial and their outputs fit this many times into the GPU's memory: half of it may be taken by
submissions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Seeds of the inputs of one trial, a set each.

    Yardstick, submission and reference need the same sets. They are drawn for each of them: all that are kept
    would take a seventh of the GPU's memory, and drawing them takes about a tenth of a second.
    """

    shape: Shape
    seeds: tuple[int, ...]
    device: torch.device
    cu_seqlens: list[int] | None = None
    draw: Callable[[Shape, torch.Generator], Inputs] = draw_inputs
    """Makes a set of its shape and generator."""

    def sets(self, count: int) -> InputSets:
        """Return the first `count` sets."""
        return InputSets(shape=self.shape, count=count, draw=self.inputs)

    def inputs(self, number: int) -> Inputs:
        """Return one set; the same every time."""
        return self.draw(self.shape, self.generator(number))

    def generator(self, number: int) -> torch.Generator:
        """Return what a set is drawn with; in the same state every time."""
        return torch.Generator(self.device).manual_seed(self.seeds[number])

    def reference(self, number: int, previous: torch.Tensor | None = None) -> torch.Tensor:
        """Work out the float32 reference o [B, T, H, D] of a set, after the output of the call before it."""
        inputs = self.inputs(number)
        beta = inputs.beta if previous is None else chained_beta(inputs.beta, previous)
        return reference_output(
            Inputs(q=inputs.q, k=inputs.k, v=inputs.v, beta=beta), self.device, self.cu_seqlens
        )


def timed_shape(job: EvaluationJob, length: int) -> Shape:
    """Return the layer's shape as the job's device can do it."""
    if job.device == "cpu":
        # float32: bfloat16 dots are wrong in the interpreter.
        return Shape(batch=1, length=length, heads=2, dim=32, dtype="float32")
    return Shape(batch=1, length=length, heads=8, dim=64, dtype="bfloat16")


class Drawing:
    """Draws for one evaluation; the job's seeds first, to repeat an earlier one."""

    def __init__(self, job: EvaluationJob) -> None:
        self._job = job
        self._device = torch.device(job.device)
        self.seeds: list[int] = []
        """Every seed used so far: of the lengths, then of each set."""
        steps = random.Random(self._next_seed()).sample(
            range(JITTER_STEPS[job.profile]), LENGTHS[job.profile]
        )
        self.lengths = [job.sequence_length + JITTER_STEP * step for step in sorted(steps, reverse=True)]
        """Of the timed trials, in turn: nothing can be prepared for the target alone. The longest first:
        the memory that a worker takes for it does for the others."""

    def draw(self, shape: Shape, cu_seqlens: list[int] | None = None, *, count: int = 1) -> Drawn:
        """Draw the sets of one trial."""
        seeds = tuple(self._next_seed() for _ in range(count))
        return Drawn(shape=shape, seeds=seeds, device=self._device, cu_seqlens=cu_seqlens)

    def draw_unrecorded(self, shape: Shape, *, count: int) -> Drawn:
        """Draw sets that no submission gets to see, for measuring the measurement."""
        seeds = tuple(_random_seed() for _ in range(count))
        return Drawn(shape=shape, seeds=seeds, device=self._device)

    def most_sets(self, shape: Shape) -> int:
        """Return how many sets a trial has at most."""
        if self._device.type == "cpu":
            return 1
        room = torch.cuda.get_device_properties(self._device).total_memory // MEMORY_SHARE
        return max(1, min(MAX_CALLS, room // (shape.set_bytes * 4 // 3)))

    def sets_for(self, shape: Shape, call_s: float) -> int:
        """Return how many calls make a trial long enough, when one takes `call_s` seconds."""
        wanted = math.ceil(TRIAL_S / max(call_s, TRIAL_S / MAX_CALLS))
        return min(wanted, self.most_sets(shape))

    def _next_seed(self) -> int:
        used = len(self.seeds)
        given = self._job.seeds[used : used + 1]
        self.seeds.append(given[0] if given else _random_seed())
        return self.seeds[-1]


def _random_seed() -> int:
    return int.from_bytes(os.urandom(7), "little")
