"""The referee's inputs and output of one trial: in sealed files for a CPU, in shared memory of a GPU."""

import os
from typing import Protocol

import numpy as np
import torch

from kernels.harness.device_memory import DeviceMemory
from kernels.harness.inputs import Inputs, Shape
from kernels.harness.memory import POISON, OutputFile, input_file

POISON_16: int = 0x7FA5
"""The upper half of POISON: a NaN of bfloat16 with a payload that no arithmetic produces."""


class Buffers(Protocol):
    """Inputs that nobody has seen and an output full of poison."""

    descriptors: tuple[int, int]
    """Inputs and output, as the worker gets them."""

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """Copy some rows [R, D] of the output to this process: the raw bits, once they have arrived."""

    def whole(self) -> torch.Tensor:
        """Copy all rows [B * T * H, D] of the output, raw bits."""

    def poison(self) -> int:
        """Return the bits that mark a number nobody wrote."""

    def values(self, bits: torch.Tensor) -> torch.Tensor:
        """Return raw bits as float32 numbers [B, T, H, D]."""

    def close(self) -> None:
        """Let go of everything."""


class HostBuffers:
    """float32 in anonymous files; for an operator that runs on a CPU."""

    def __init__(self, inputs: Inputs, shape: Shape) -> None:
        self._shape = shape
        source = input_file(inputs.flat().numpy())
        self._output = OutputFile(shape.count)
        self.descriptors = (source, self._output.descriptor)
        self._rows = self._output.bits.reshape(-1, shape.dim)

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """See Buffers."""
        return torch.from_numpy(self._rows[rows].view(np.int32))

    def whole(self) -> torch.Tensor:
        """See Buffers."""
        return torch.from_numpy(self._rows.copy().view(np.int32))

    def poison(self) -> int:
        """See Buffers."""
        return POISON

    def values(self, bits: torch.Tensor) -> torch.Tensor:
        """See Buffers."""
        return bits.view(torch.float32).view(self._shape.size)

    def close(self) -> None:
        """See Buffers."""
        os.close(self.descriptors[0])
        self._output.close()


class DeviceBuffers:
    """bfloat16 in allocations of the GPU that the worker has no handle to before the go."""

    def __init__(self, inputs: Inputs, shape: Shape, device: torch.device) -> None:
        self._shape, self._device = shape, device
        flat = inputs.packed(shape.torch_dtype, device)
        self._source = DeviceMemory.allocate(flat.numel(), device)
        self._output = DeviceMemory.allocate(2 * shape.count, device)
        self._source.bytes.copy_(flat)
        self._rows = self._output.bytes.view(torch.int16).view(-1, shape.dim)
        self._rows.fill_(POISON_16)
        torch.cuda.synchronize(device)
        self.descriptors = (self._source.export(), self._output.export())

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """See Buffers; waits for the copy, and so for what runs on the GPU before it."""
        return self._rows[torch.from_numpy(rows).to(self._device)].cpu()

    def whole(self) -> torch.Tensor:
        """See Buffers; the copy stays on the GPU."""
        return self._rows.clone()

    def poison(self) -> int:
        """See Buffers."""
        return POISON_16

    def values(self, bits: torch.Tensor) -> torch.Tensor:
        """See Buffers."""
        return bits.view(torch.bfloat16).float().view(self._shape.size)

    def close(self) -> None:
        """See Buffers."""
        for descriptor in self.descriptors:
            os.close(descriptor)
        del self._rows
        self._source.close()
        self._output.close()


def make_buffers(inputs: Inputs, shape: Shape, device: torch.device) -> Buffers:
    """Return the buffers of one trial on a device."""
    return HostBuffers(inputs, shape) if device.type == "cpu" else DeviceBuffers(inputs, shape, device)
