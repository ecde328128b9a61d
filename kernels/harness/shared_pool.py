"""Where an operator's output lies: a pool of PyTorch's allocator whose memory has descriptors.

An output that had to be copied into the referee's memory would cost every honest operator a copy, and nothing
the one that writes there itself. So whatever an operator allocates is already in memory that the referee can
map, and nothing is copied.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kernels.harness.device_memory import DeviceMemory

_Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
_Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True)
class Located:
    """Where a tensor lies: `offset` bytes into the segment of this number, which has `size` bytes."""

    segment: int
    offset: int
    size: int


class SharedPool:
    """Allocations made inside `use` come from memory of the driver's virtual memory API."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._segments: dict[int, tuple[int, DeviceMemory]] = {}
        """By address: number and memory."""
        self._count = 0
        # PyTorch keeps the addresses of these two alone: they must live as long as the pool.
        self._callbacks = (_Allocate(self._allocate), _Free(self._free))
        allocate, free = (ctypes.cast(call, ctypes.c_void_p).value for call in self._callbacks)
        self._allocator = torch._C._cuda_customAllocator(allocate, free)
        self._pool = torch.cuda.MemPool(self._allocator)

    @contextmanager
    def use(self) -> Iterator[None]:
        """Let this thread's allocations come from the pool."""
        with torch.cuda.use_mem_pool(self._pool, self._device):
            yield

    def locate(self, tensor: torch.Tensor) -> Located | None:
        """Say where a tensor lies; None when it is not in the pool as one piece."""
        if not tensor.is_contiguous():
            return None
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        for address, (number, memory) in self._segments.items():
            if address <= first and last <= address + memory.size:
                return Located(number, first - address, memory.size)
        return None

    def export(self, segment: int) -> int:
        """Return a new descriptor of a segment, which the caller closes."""
        return next(memory.export() for number, memory in self._segments.values() if number == segment)

    def _allocate(self, size: int, _device: int, _stream: int | None) -> int:
        """Called by PyTorch for a new segment; 0 is its word for no memory."""
        try:
            memory = DeviceMemory.allocate(size, self._device)
        except RuntimeError:
            return 0
        self._segments[memory.address] = self._count, memory
        self._count += 1
        return memory.address

    def _free(self, address: int, _size: int, _device: int, _stream: int | None) -> None:
        _, memory = self._segments.pop(address)
        memory.close()
