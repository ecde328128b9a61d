"""What a submission is measured on: jittered lengths, recorded seeds, inputs with their exact results."""

import os
import random
from dataclasses import dataclass
from typing import Final

import torch

from kernels.harness.accuracy import reference_output
from kernels.harness.inputs import Inputs, Shape, draw_inputs
from protocol.messages import EvaluationJob

JITTER_STEP: Final = 64
JITTER_STEPS: Final = {"gpu": 16, "cpu": 2}
"""Lengths lie above the target by fewer steps than this; the interpreter's time grows with the length."""
LENGTHS: Final = {"gpu": 3, "cpu": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One draw of inputs and the float32 reference o [B, T, H, D] for them."""

    shape: Shape
    inputs: Inputs
    reference: torch.Tensor
    cu_seqlens: list[int] | None = None


def timed_shape(job: EvaluationJob, length: int) -> Shape:
    """Return the layer's shape in the job's profile."""
    if job.profile == "cpu":
        # float32: bfloat16 dots are wrong in the interpreter.
        return Shape(batch=1, length=length, heads=2, dim=32, dtype="float32")
    return Shape(batch=1, length=length, heads=8, dim=64, dtype="bfloat16")


class Drawing:
    """Draws for one evaluation; the job's seeds first, to repeat an earlier one."""

    def __init__(self, job: EvaluationJob) -> None:
        self._job = job
        self._device = torch.device(job.device)
        self.seeds: list[int] = []
        """Every seed used so far: of the lengths, then of each draw."""
        steps = random.Random(self._next_seed()).sample(
            range(JITTER_STEPS[job.profile]), LENGTHS[job.profile]
        )
        self.lengths = [job.sequence_length + JITTER_STEP * step for step in steps]
        """Of the timed trials, in turn: nothing can be prepared for the target alone."""

    def draw(self, shape: Shape, cu_seqlens: list[int] | None = None) -> Drawn:
        """Draw inputs and work out the reference."""
        inputs = self._inputs(shape, self._next_seed())
        reference = reference_output(inputs, self._device, cu_seqlens)
        return Drawn(shape=shape, inputs=inputs, reference=reference, cu_seqlens=cu_seqlens)

    def draw_unrecorded(self, shape: Shape) -> Inputs:
        """Draw inputs that no submission gets to see, for measuring the measurement."""
        return self._inputs(shape, _random_seed())

    def _inputs(self, shape: Shape, seed: int) -> Inputs:
        return draw_inputs(shape, torch.Generator(self._device).manual_seed(seed))

    def _next_seed(self) -> int:
        used = len(self.seeds)
        given = self._job.seeds[used : used + 1]
        self.seeds.append(given[0] if given else _random_seed())
        return self.seeds[-1]


def _random_seed() -> int:
    return int.from_bytes(os.urandom(7), "little")
