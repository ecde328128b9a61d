"""Tensors in sealed anonymous files, shared between referee and worker by descriptor."""

import fcntl
import mmap
import os
from typing import Final

import numpy as np
import torch

_F_ADD_SEALS: Final = 1033
_SEAL_SHRINK, _SEAL_GROW, _SEAL_WRITE = 2, 4, 8

POISON: Final = 0x7FA5A5A5
"""A float32 NaN with a payload that no arithmetic produces: marks output that nobody wrote."""


def input_file(data: np.ndarray) -> int:
    """Return the descriptor of a new file that holds `data` and can no longer change."""
    descriptor = os.memfd_create("quasar-inputs", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(np.ascontiguousarray(data)).cast("B")
    written = 0
    while written < len(view):
        written += os.write(descriptor, view[written:])
    fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW | _SEAL_WRITE)
    return descriptor


class OutputFile:
    """Room for `count` float32 numbers, poisoned, that the worker may write but not resize."""

    def __init__(self, count: int) -> None:
        self.descriptor = os.memfd_create("quasar-output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, 4 * count)
        fcntl.fcntl(self.descriptor, _F_ADD_SEALS, _SEAL_SHRINK | _SEAL_GROW)
        self.bits = np.frombuffer(mmap.mmap(self.descriptor, 4 * count, mmap.MAP_SHARED), dtype=np.uint32)
        self.bits[:] = POISON

    def close(self) -> None:
        """Let go of the file; its memory goes with the last view of `bits`."""
        os.close(self.descriptor)


def map_inputs(descriptor: int, count: int) -> torch.Tensor:
    """Map an input file as a private float32 tensor [count]: writes stay in the process that makes them."""
    private = mmap.mmap(descriptor, 4 * count, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    return torch.from_numpy(np.frombuffer(private, dtype=np.float32))


def map_output(descriptor: int, count: int) -> torch.Tensor:
    """Map an output file as a shared float32 tensor [count]."""
    return torch.from_numpy(
        np.frombuffer(mmap.mmap(descriptor, 4 * count, mmap.MAP_SHARED), dtype=np.float32)
    )
