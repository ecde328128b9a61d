"""The worker's side of a trial: takes the inputs out of descriptors and leaves the output to be found."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from kernels.harness.device_memory import DeviceMemory
from kernels.harness.inputs import Shape
from kernels.harness.memory import map_inputs, map_output
from kernels.harness.shared_pool import SharedPool


@dataclass(frozen=True, slots=True)
class Output:
    """What the referee is told about the output."""

    fields: dict[str, Any] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


class Room(Protocol):
    """Where an operator finds its inputs and leaves its output."""

    max_descriptors: int
    """How many descriptors come with the go."""

    def enter(self, shape: Shape, descriptors: list[int]) -> tuple[torch.Tensor, ...]:
        """Map the inputs and return q, k, v [B, T, H, D] and beta [H]."""

    def allocations(self) -> AbstractContextManager[None]:
        """Around the operator: where its memory comes from."""

    def leave(self, o: torch.Tensor) -> Output:
        """Wait for the output and say where it is."""

    def tidy(self) -> None:
        """Let go of what one trial needed, after the referee has the answer."""


class HostRoom:
    """Inputs and output in files."""

    max_descriptors = 2

    def enter(self, shape: Shape, descriptors: list[int]) -> tuple[torch.Tensor, ...]:
        """See Room."""
        inputs, output = descriptors
        try:
            flat = map_inputs(inputs, 3 * shape.count + shape.heads)
            self._target = map_output(output, shape.count).view(shape.size)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        q, k, v = (part.view(shape.size).to(shape.torch_dtype) for part in flat[: -shape.heads].chunk(3))
        return q, k, v, flat[-shape.heads :]

    def allocations(self) -> AbstractContextManager[None]:
        """See Room."""
        return nullcontext()

    def leave(self, o: torch.Tensor) -> Output:
        """See Room."""
        self._target.copy_(o)
        return Output()

    def tidy(self) -> None:
        """See Room."""
        self._target = torch.empty(0)


class DeviceRoom:
    """Inputs in the referee's memory of the GPU, the output in memory that the referee can map."""

    max_descriptors = 1

    def __init__(self, device: torch.device) -> None:
        torch.cuda.set_device(device)
        # The context is there before the first allocation asks for it.
        torch.empty(1, device=device)
        self._device = device
        self._pool = SharedPool(device)
        self._told: set[int] = set()
        self._inputs: DeviceMemory | None = None
        self._sent: tuple[int, ...] = ()

    def enter(self, shape: Shape, descriptors: list[int]) -> tuple[torch.Tensor, ...]:
        """See Room."""
        self._output = None
        tensor_bytes = shape.count * shape.torch_dtype.itemsize
        try:
            self._inputs = DeviceMemory.receive(
                descriptors[0], 3 * tensor_bytes + 4 * shape.heads, self._device
            )
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        flat = self._inputs.bytes
        q, k, v = (
            flat[index * tensor_bytes :][:tensor_bytes].view(shape.torch_dtype).view(shape.size)
            for index in range(3)
        )
        return q, k, v, flat[3 * tensor_bytes :].view(torch.float32)

    @contextmanager
    def allocations(self) -> Iterator[None]:
        """See Room."""
        with self._pool.use():
            yield

    def leave(self, o: torch.Tensor) -> Output:
        """See Room."""
        where = self._pool.locate(o)
        if where is None:
            # A view of something else, or made in another thread: honest, and the copy is its own cost.
            with self._pool.use():
                o = o.clone(memory_format=torch.contiguous_format)
            where = self._pool.locate(o)
            assert where is not None
        self._output = o
        """Kept until the next trial: the referee reads it."""
        torch.cuda.synchronize(self._device)
        if where.segment not in self._told:
            self._sent = (self._pool.export(where.segment),)
            self._told.add(where.segment)
        return Output({"segment": where.segment, "offset": where.offset, "size": where.size}, self._sent)

    def tidy(self) -> None:
        """See Room."""
        for descriptor in self._sent:
            os.close(descriptor)
        self._sent = ()
        if self._inputs is not None:
            self._inputs.close()
            self._inputs = None


def make_room(device: str) -> Room:
    """Return the room of a worker on `device`."""
    return HostRoom() if device == "cpu" else DeviceRoom(torch.device(device))
