"""The worker's side of a trial: takes the inputs out of descriptors and leaves the outputs to be found."""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch

from kernels.harness.device_memory import DeviceMemory, enter_context
from kernels.harness.inputs import Shape
from kernels.harness.memory import map_inputs, map_output
from kernels.harness.shared_pool import Located, SharedPool
from kernels.harness.wire import SPIN_S

InputSet = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""q, k, v [B, T, H, D] and beta [H]."""

MAX_MARKS: Final = 3
"""In one trial."""


@dataclass(frozen=True, slots=True)
class Output:
    """What the referee is told about the outputs."""

    fields: dict[str, Any] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


class Room(Protocol):
    """Where an operator finds its inputs and leaves its outputs."""

    max_descriptors: int
    """How many descriptors come with the go."""
    spin_s: float
    """For how long the worker stays awake for the next message."""

    def enter(self, shape: Shape, sets: int, descriptors: list[int]) -> Iterator[InputSet]:
        """Map the inputs, and give one set after the other."""

    def allocations(self) -> AbstractContextManager[None]:
        """Around the operator: where its memory comes from."""

    def mark(self) -> None:
        """Note when what was asked for so far is done."""

    def between_marks_s(self) -> float:
        """Return the seconds between the last two marks, once the outputs are there."""

    def leave(self, outputs: list[torch.Tensor]) -> Output:
        """Wait for the outputs and say where they are."""

    def tidy(self) -> None:
        """Let go of what one trial needed, after the referee has the answer."""


def laid_out(memory: torch.Tensor, shape: Shape, sets: int) -> Iterator[InputSet]:
    """Give the sets that lie one after another in bytes `memory`, each when it is asked for.

    While the GPU runs a call, the next one's inputs are laid out: one step for a tensor, because a short call
    must not wait for them.
    """
    numbers, rates = memory.view(shape.torch_dtype), memory.view(torch.float32)
    size, count, heads, dim = shape.size, shape.count, shape.heads, shape.dim
    strides = (shape.length * heads * dim, heads * dim, dim, 1)
    numbers_of_set, rates_of_set = (shape.set_bytes // each.element_size() for each in (numbers, rates))
    rates_at = 3 * count * numbers.element_size() // rates.element_size()
    for number in range(sets):
        first = number * numbers_of_set
        q, k, v = (numbers.as_strided(size, strides, first + part * count) for part in range(3))
        yield q, k, v, rates.as_strided((heads,), (1,), number * rates_of_set + rates_at)


class HostRoom:
    """One set of inputs and its output, in files."""

    max_descriptors = 2
    spin_s = 0.0

    def __init__(self) -> None:
        self._marks: list[float] = []

    def enter(self, shape: Shape, sets: int, descriptors: list[int]) -> Iterator[InputSet]:
        """See Room."""
        self._marks = []
        inputs, output = descriptors
        try:
            flat = map_inputs(inputs, sets * (3 * shape.count + shape.heads))
            self._target = map_output(output, shape.count).view(shape.size)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        q, k, v = (part.view(shape.size).to(shape.torch_dtype) for part in flat[: -shape.heads].chunk(3))
        yield q, k, v, flat[-shape.heads :]

    def allocations(self) -> AbstractContextManager[None]:
        """See Room."""
        return nullcontext()

    def mark(self) -> None:
        """See Room."""
        self._marks.append(time.perf_counter())

    def between_marks_s(self) -> float:
        """See Room."""
        return self._marks[-1] - self._marks[-2]

    def leave(self, outputs: list[torch.Tensor]) -> Output:
        """See Room."""
        self._target.copy_(outputs[0])
        return Output()

    def tidy(self) -> None:
        """See Room."""
        self._target = torch.empty(0)


class DeviceRoom:
    """Inputs in the referee's memory of the GPU, outputs in memory that the referee can map."""

    max_descriptors = 1
    spin_s = SPIN_S

    def __init__(self, device: torch.device) -> None:
        enter_context(device)
        self._device = device
        self._pool = SharedPool(device)
        self._told: set[int] = set()
        self._inputs: DeviceMemory | None = None
        self._outputs: list[torch.Tensor] = []
        self._to_close: list[int] = []
        """Descriptors of this trial: the clock need not see how they are closed."""
        # Made once: making one takes longer than a short call.
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(MAX_MARKS)]
        self._marked = 0

    def enter(self, shape: Shape, sets: int, descriptors: list[int]) -> Iterator[InputSet]:
        """See Room."""
        self._outputs = []
        self._marked = 0
        self._to_close += descriptors
        self._inputs = DeviceMemory.receive(descriptors[0], sets * shape.set_bytes, self._device)
        return laid_out(self._inputs.bytes, shape, sets)

    @contextmanager
    def allocations(self) -> Iterator[None]:
        """See Room."""
        with self._pool.use():
            yield

    def mark(self) -> None:
        """See Room."""
        self._events[self._marked].record()
        self._marked += 1

    def between_marks_s(self) -> float:
        """See Room."""
        before, last = self._events[self._marked - 2 : self._marked]
        return float(before.elapsed_time(last)) / 1e3

    def leave(self, outputs: list[torch.Tensor]) -> Output:
        """See Room."""
        places = [self._placed(o) for o in outputs]
        torch.cuda.synchronize(self._device)
        new = {place.segment: place.size for place in places if place.segment not in self._told}
        exported = tuple(self._pool.export(segment) for segment in new)
        self._to_close += exported
        self._told |= new.keys()
        return Output(
            {
                "segments": [[segment, size] for segment, size in new.items()],
                "outputs": [[place.segment, place.offset] for place in places],
            },
            exported,
        )

    def tidy(self) -> None:
        """See Room."""
        while self._to_close:
            os.close(self._to_close.pop())
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None

    def _placed(self, o: torch.Tensor) -> Located:
        """Say where an output is, which is kept until the next trial: the referee reads it."""
        place = self._pool.locate(o)
        if place is None:
            # A view of something else, or made in another thread: honest, and the copy is its own cost.
            with self._pool.use():
                o = o.clone(memory_format=torch.contiguous_format)
            place = self._pool.locate(o)
            assert place is not None
        self._outputs.append(o)
        return place


def make_room(device: str) -> Room:
    """Return the room of a worker on `device`."""
    return HostRoom() if device == "cpu" else DeviceRoom(torch.device(device))
