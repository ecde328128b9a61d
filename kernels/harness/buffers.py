"""Where trials take place: inputs nobody has seen, and the output where the worker says it is.

On a CPU both are the referee's files. On a GPU the inputs are the referee's memory, and the output is the
worker's, which the referee maps: a copy would be part of the time of everyone who does not cheat.
"""

import functools
import os
import random
from typing import Any, Final, Protocol

import numpy as np
import torch

from kernels.harness.device_memory import DeviceMemory
from kernels.harness.inputs import Inputs, InputSets, Shape
from kernels.harness.memory import POISON, OutputFile, input_file
from kernels.harness.wire import SPIN_S

MAX_CALLS: Final = 64
"""In one trial on a GPU; each output may lie in a segment of its own, which comes by descriptor."""
SAMPLED_CALLS: Final = 4
"""Outputs of a trial whose rows are gathered before the clock stops."""


class OutputRefused(Exception):
    """An output is not where the worker says, is not all there, or changed after the worker was done."""


class NoRoomToMap(Exception):
    """The GPU is too full for an output to be mapped, which need not be the worker's doing."""


class Offer(Protocol):
    """One trial's inputs, and its outputs afterwards."""

    descriptors: tuple[int, ...]
    """What the worker gets at the go."""

    def gather(self, answer: dict[str, Any], descriptors: list[int]) -> None:
        """Take the chosen rows of the outputs; back when they have arrived.

        Raises OutputRefused, NoRoomToMap.
        """

    def results(self) -> list[torch.Tensor]:
        """Return the outputs [B, T, H, D] in the shape's dtype. Raises OutputRefused."""

    def close(self) -> None:
        """Let go of everything."""


class Ground(Protocol):
    """Where the trials of one worker take place."""

    answer_fields: frozenset[str]
    """What the worker says about its outputs."""
    max_descriptors: int
    """How many descriptors may come with that."""
    spin_s: float
    """For how long the referee stays awake for the answer."""

    def offer(self, sets: InputSets, calls: int, rows: np.ndarray) -> Offer:
        """Lay out one trial; `rows` are those to be gathered of each output, of [B * T * H, D]."""

    def close(self) -> None:
        """Let go of everything."""


class HostGround:
    """One set of inputs in float32, in anonymous files; for an operator that runs on a CPU."""

    answer_fields: frozenset[str] = frozenset()
    max_descriptors = 0
    spin_s = 0.0

    def offer(self, sets: InputSets, calls: int, rows: np.ndarray) -> Offer:
        """See Ground. Raises ValueError for more than one set."""
        if (sets.count, calls) != (1, 1):
            raise ValueError(f"{calls} calls on {sets.count} sets: a trial on a CPU has one of each")
        return _HostOffer(sets.draw(0), sets.shape, rows)

    def close(self) -> None:
        """See Ground."""


class _HostOffer:
    def __init__(self, inputs: Inputs, shape: Shape, rows: np.ndarray) -> None:
        self._shape, self._chosen = shape, rows
        source = input_file(inputs.flat().numpy())
        self._output = OutputFile(shape.count)
        self.descriptors: tuple[int, ...] = (source, self._output.descriptor)
        self._rows = self._output.bits.reshape(-1, shape.dim)

    def gather(self, _answer: dict[str, Any], _descriptors: list[int]) -> None:
        self._gathered = self._rows[self._chosen]

    def results(self) -> list[torch.Tensor]:
        whole = self._rows.copy()
        if not np.array_equal(whole[self._chosen], self._gathered):
            raise OutputRefused("the output changed after the worker said that it was done")
        unwritten = int((whole == POISON).sum())
        if unwritten:
            # The worker writes all of o before it says so: this one did not wait for it.
            raise OutputRefused(
                f"{unwritten:,} of {whole.size:,} numbers of o were not written when it said done"
            )
        return [torch.from_numpy(whole.view(np.float32)).view(self._shape.size)]

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class DeviceGround:
    """bfloat16 in memory of the GPU; for an operator that runs there."""

    answer_fields: frozenset[str] = frozenset({"segments", "outputs"})
    max_descriptors = MAX_CALLS
    spin_s = SPIN_S

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._segments: dict[int, DeviceMemory] = {}
        """Of the worker, by its number for it; mapped for as long as the worker lives, which describes each
        once: mapping takes a tenth of a millisecond, and PyTorch gives nothing of its pool back before."""

    def offer(self, sets: InputSets, calls: int, rows: np.ndarray) -> Offer:
        """See Ground."""
        return _DeviceOffer(self, sets, calls, torch.from_numpy(rows).to(self._device), self._device)

    def close(self) -> None:
        """See Ground."""
        while self._segments:
            self._segments.popitem()[1].close()

    @functools.cached_property
    def _most_bytes(self) -> int:
        return int(torch.cuda.get_device_properties(self._device).total_memory)

    def map_segments(self, described: Any, descriptors: list[int]) -> None:
        """Map new memory of the worker: [number, bytes] for each descriptor.

        Raises OutputRefused, NoRoomToMap.
        """
        pairs = _pairs(described, len(descriptors))
        for (number, size), descriptor in zip(pairs, descriptors, strict=True):
            if number in self._segments:
                raise OutputRefused(f"the worker described its memory {number} twice")
            # Asked for more than there is, the driver says that there is no memory left.
            if not 0 < size <= self._most_bytes:
                raise OutputRefused(
                    f"the worker described {size:,} bytes of memory on a GPU of {self._most_bytes:,}"
                )
            try:
                memory = DeviceMemory.receive(descriptor, size, self._device)
            except torch.cuda.OutOfMemoryError as error:
                raise NoRoomToMap(f"no room to map the worker's memory: {error}") from error
            except RuntimeError as error:
                # Whatever the descriptor is, it is no memory of this GPU of that size.
                raise OutputRefused(f"the worker's memory cannot be mapped: {error}") from error
            self._segments[number] = memory

    def rows(self, number: int, offset: int, shape: Shape) -> torch.Tensor:
        """Return the raw bits [B * T * H, D] of the output at a place. Raises OutputRefused."""
        memory = self._segments.get(number)
        if memory is None:
            raise OutputRefused(f"the worker named memory {number}, which it never described")
        needed = shape.count * shape.torch_dtype.itemsize
        if offset < 0 or offset % shape.torch_dtype.itemsize or offset + needed > memory.size:
            raise OutputRefused(f"an output of {needed:,} bytes is not at {offset:,} of {memory.size:,}")
        return memory.bytes[offset : offset + needed].view(torch.int16).view(-1, shape.dim)


def _pairs(described: Any, count: int) -> list[tuple[int, int]]:
    """Read a list of `count` pairs of whole numbers. Raises OutputRefused."""
    is_list = isinstance(described, list) and len(described) == count
    if not is_list or not all(
        isinstance(pair, list) and len(pair) == 2 and all(type(value) is int for value in pair)
        for pair in described
    ):
        raise OutputRefused(f"the worker did not describe its outputs in {count} pairs of whole numbers")
    return [(pair[0], pair[1]) for pair in described]


class _DeviceOffer:
    def __init__(
        self, ground: DeviceGround, sets: InputSets, calls: int, rows: torch.Tensor, device: torch.device
    ) -> None:
        self._ground, self._sets, self._calls = ground, sets, calls
        self._chosen, self._device = rows, device
        shape = sets.shape
        self._source = _allocated(sets.count * shape.set_bytes, device)
        for number, target in enumerate(self._source.bytes.split(shape.set_bytes)):
            sets.draw(number).pack(target)
        # Of the last call and some others.
        self._sampled = [calls - 1, *random.SystemRandom().choices(range(calls), k=SAMPLED_CALLS - 1)]
        self._gathered = torch.empty(SAMPLED_CALLS, len(rows), shape.dim, dtype=torch.int16, device=device)
        torch.cuda.synchronize(device)
        self.descriptors: tuple[int, ...] = (self._source.export(),)

    def gather(self, answer: dict[str, Any], descriptors: list[int]) -> None:
        self._ground.map_segments(answer["segments"], descriptors)
        self._places = _pairs(answer["outputs"], self._calls)
        for number, target in zip(self._sampled, self._gathered, strict=True):
            torch.index_select(self._rows(number), 0, self._chosen, out=target)
        # Waits for what runs on the GPU before it, too.
        torch.cuda.synchronize(self._device)

    def results(self) -> list[torch.Tensor]:
        # Not before: the clock need not see how all the places are looked up.
        whole = [self._rows(number).clone() for number in range(self._calls)]
        for number, gathered in zip(self._sampled, self._gathered, strict=True):
            if not torch.equal(whole[number][self._chosen], gathered):
                raise OutputRefused("an output changed after the worker said that it was done")
        return [rows.view(torch.bfloat16).view(self._sets.shape.size) for rows in whole]

    def close(self) -> None:
        os.close(self.descriptors[0])
        self._source.close()

    def _rows(self, call: int) -> torch.Tensor:
        """Return the raw bits of a call's output. Raises OutputRefused."""
        number, offset = self._places[call]
        return self._ground.rows(number, offset, self._sets.shape)


def _allocated(size: int, device: torch.device) -> DeviceMemory:
    try:
        return DeviceMemory.allocate(size, device)
    except torch.cuda.OutOfMemoryError:
        # The driver cannot know that PyTorch holds memory that nobody uses any more.
        torch.cuda.empty_cache()
        return DeviceMemory.allocate(size, device)


def make_ground(device: torch.device) -> Ground:
    """Return the ground for operators that run on `device`."""
    return HostGround() if device.type == "cpu" else DeviceGround(device)
