"""Where trials take place: inputs nobody has seen, and the output where the worker says it is.

On a CPU both are the referee's files. On a GPU the inputs are the referee's memory, and the output is the
worker's, which the referee maps: a copy would be part of the time of everyone who does not cheat.
"""

import os
from collections import OrderedDict
from typing import Any, Final, Protocol

import numpy as np
import torch

from kernels.harness.device_memory import DeviceMemory
from kernels.harness.inputs import Inputs, Shape
from kernels.harness.memory import POISON, OutputFile, input_file

MAPPED_SEGMENTS: Final = 4
"""Segments of the worker's memory that stay mapped: mapping one takes a tenth of a millisecond."""


class OutputRefused(Exception):
    """The output is not where the worker says, is not all there, or changed after the worker was done."""


class Offer(Protocol):
    """One trial's inputs, and its output afterwards."""

    descriptors: tuple[int, ...]
    """What the worker gets at the go."""

    def gather(self, answer: dict[str, Any], descriptors: list[int]) -> None:
        """Take the chosen rows of the output; back when they have arrived. Raises OutputRefused."""

    def result(self) -> torch.Tensor:
        """Return the output, float32 [B, T, H, D]. Raises OutputRefused."""

    def close(self) -> None:
        """Let go of everything."""


class Ground(Protocol):
    """Where the trials of one worker take place."""

    answer_fields: frozenset[str]
    """What the worker says about its output."""
    max_descriptors: int
    """How many descriptors may come with that."""

    def offer(self, inputs: Inputs, shape: Shape, rows: np.ndarray) -> Offer:
        """Lay out one trial; `rows` are those to be gathered, of [B * T * H, D]."""

    def close(self) -> None:
        """Let go of everything."""


class HostGround:
    """float32 in anonymous files; for an operator that runs on a CPU."""

    answer_fields: frozenset[str] = frozenset()
    max_descriptors = 0

    def offer(self, inputs: Inputs, shape: Shape, rows: np.ndarray) -> Offer:
        """See Ground."""
        return _HostOffer(inputs, shape, rows)

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

    def result(self) -> torch.Tensor:
        whole = self._rows.copy()
        if not np.array_equal(whole[self._chosen], self._gathered):
            raise OutputRefused("the output changed after the worker said that it was done")
        unwritten = int((whole == POISON).sum())
        if unwritten:
            # The worker writes all of o before it says so: this one did not wait for it.
            raise OutputRefused(
                f"{unwritten:,} of {whole.size:,} numbers of o were not written when it said done"
            )
        return torch.from_numpy(whole.view(np.float32)).view(self._shape.size)

    def close(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


class DeviceGround:
    """bfloat16 in memory of the GPU; for an operator that runs there."""

    answer_fields: frozenset[str] = frozenset({"segment", "offset", "size"})
    max_descriptors = 1

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._segments: OrderedDict[int, DeviceMemory] = OrderedDict()

    def offer(self, inputs: Inputs, shape: Shape, rows: np.ndarray) -> Offer:
        """See Ground."""
        return _DeviceOffer(self, inputs, shape, torch.from_numpy(rows).to(self._device), self._device)

    def close(self) -> None:
        """See Ground."""
        while self._segments:
            self._segments.popitem()[1].close()

    def output_rows(self, answer: dict[str, Any], descriptors: list[int], shape: Shape) -> torch.Tensor:
        """Return the output's raw bits [B * T * H, D] where the worker says it is. Raises OutputRefused."""
        number, offset, size = (answer[name] for name in ("segment", "offset", "size"))
        needed = shape.count * shape.torch_dtype.itemsize
        if not all(type(value) is int for value in (number, offset, size)):
            raise OutputRefused("the worker described its output in something else than whole numbers")
        if offset < 0 or offset % shape.torch_dtype.itemsize or offset + needed > size:
            raise OutputRefused(f"the worker's output of {needed:,} bytes is not at {offset:,} of {size:,}")
        memory = self._mapped(number, size, descriptors)
        return memory.bytes[offset : offset + needed].view(torch.int16).view(-1, shape.dim)

    def _mapped(self, number: int, size: int, descriptors: list[int]) -> DeviceMemory:
        known = self._segments.get(number)
        if known is not None and not descriptors and known.size == size:
            self._segments.move_to_end(number)
            return known
        if known is not None or len(descriptors) != 1:
            raise OutputRefused(f"the worker's memory {number} was described in two ways, or not at all")
        try:
            memory = DeviceMemory.receive(descriptors[0], size, self._device)
        except (RuntimeError, OverflowError) as error:
            # Whatever the descriptor is, it is no memory of this GPU of that size.
            raise OutputRefused(f"the worker's memory cannot be mapped: {error}") from error
        self._segments[number] = memory
        while len(self._segments) > MAPPED_SEGMENTS:
            self._segments.popitem(last=False)[1].close()
        return memory


class _DeviceOffer:
    def __init__(
        self, ground: DeviceGround, inputs: Inputs, shape: Shape, rows: torch.Tensor, device: torch.device
    ) -> None:
        self._ground, self._shape, self._chosen, self._device = ground, shape, rows, device
        flat = inputs.packed(shape.torch_dtype, device)
        self._source = DeviceMemory.allocate(flat.numel(), device)
        self._source.bytes.copy_(flat)
        self._gathered = torch.empty(len(rows), shape.dim, dtype=torch.int16, device=device)
        torch.cuda.synchronize(device)
        self.descriptors: tuple[int, ...] = (self._source.export(),)

    def gather(self, answer: dict[str, Any], descriptors: list[int]) -> None:
        self._rows = self._ground.output_rows(answer, descriptors, self._shape)
        torch.index_select(self._rows, 0, self._chosen, out=self._gathered)
        # Waits for what runs on the GPU before it, too.
        torch.cuda.synchronize(self._device)

    def result(self) -> torch.Tensor:
        whole = self._rows.clone()
        if not torch.equal(whole[self._chosen], self._gathered):
            raise OutputRefused("the output changed after the worker said that it was done")
        return whole.view(torch.bfloat16).float().view(self._shape.size)

    def close(self) -> None:
        os.close(self.descriptors[0])
        self._source.close()


def make_ground(device: torch.device) -> Ground:
    """Return the ground for operators that run on `device`."""
    return HostGround() if device.type == "cpu" else DeviceGround(device)
