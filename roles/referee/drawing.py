"""What a submission is measured on: jittered lengths, recorded seeds, inputs with their exact results."""

import itertools
import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
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
"""All sets of a trial and their outputs fit this many times into the GPU's memory: in a comparison most of
it is there three times, and drawing and comparing take some, too."""
CHECKED_HEADS: Final = 2
"""Of each output, where a trial has several: drawn like the inputs, so that nobody knows before which."""

Part = tuple[int, int]
"""The number of a call, and a head of its output."""
_Kept = dict[tuple[Shape, int], Inputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Seeds of the inputs of one trial, a set each, and the sets drawn from them so far."""

    shape: Shape
    seeds: tuple[int, ...]
    device: torch.device
    cu_seqlens: list[int] | None = None
    kept: _Kept = field(default_factory=dict, repr=False, compare=False)
    """By shape and seed: yardstick, submission and reference need the same."""

    def sets(self, count: int) -> InputSets:
        """Return the first `count` sets."""
        return InputSets(shape=self.shape, count=count, draw=self.inputs)

    def inputs(self, number: int) -> Inputs:
        """Return one set in the shape's dtype; the same every time."""
        seed = self.seeds[number]
        kept = self.kept.get((self.shape, seed))
        if kept is None:
            drawn = draw_inputs(self.shape, torch.Generator(self.device).manual_seed(seed))
            kept = self.kept[self.shape, seed] = drawn.to(self.shape.torch_dtype)
        return kept

    def parts(self, calls: int) -> list[Part]:
        """Return what is checked of the outputs of a trial: all of the one, or some heads of each."""
        heads = range(self.shape.heads)
        if calls == 1:
            return [(0, head) for head in heads]
        return [
            (call, head)
            for call in range(calls)
            for head in sorted(random.Random(self.seeds[call]).sample(heads, min(CHECKED_HEADS, len(heads))))
        ]

    def reference(self, parts: Sequence[Part], outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """Work out the float32 reference o [B, T, P, D] of P parts of the outputs of a trial."""
        qs, ks, vs, betas = [], [], [], []
        for call, group in itertools.groupby(parts, key=lambda part: part[0]):
            heads, inputs = [head for _, head in group], self.inputs(call)
            beta = chained_beta(inputs.beta, outputs[call - 1]) if call else inputs.beta
            for into, tensor in zip((qs, ks, vs), (inputs.q, inputs.k, inputs.v), strict=True):
                into.append(tensor[:, :, heads])
            betas.append(beta[heads])
        q, k, v = (torch.cat(each, dim=2) for each in (qs, ks, vs))
        return reference_output(Inputs(q=q, k=k, v=v, beta=torch.cat(betas)), self.device, self.cu_seqlens)


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
