"""Where an operator's output lies: a pool of PyTorch's allocator whose memory has descriptors.

An output that had to be copied into the referee's memory would cost every honest operator a copy, and nothing
the one that writes there itself. So whatever an operator allocates is already in memory that the referee can
map, and nothing is copied.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch

from kernels.harness.device_memory import DeviceMemory

_Allocate = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
_Free = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int, ctypes.c_void_p)
_CALLBACKS: Final[list[Any]] = []
"""PyTorch keeps the addresses of callbacks alone and frees memory when it likes: they live as long as it."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where a tensor lies: `offset` bytes into the segment of this number, which has `size` bytes."""

    segment: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Segment:
    number: int
    memory: DeviceMemory


class SharedPool:
    """Allocations made inside `use` come from memory of the driver's virtual memory API."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._segments: dict[int, _Segment] = {}
        """By address."""
        self._refusals: list[str] = []
        """What the driver said when it gave no memory."""
        allocate, free = _callbacks(self._segments, self._refusals, device)
        self._pool = torch.cuda.MemPool(torch._C._cuda_customAllocator(allocate, free))

    @contextmanager
    def use(self) -> Iterator[None]:
        """Let this thread's allocations come from the pool.

        Raises torch.cuda.OutOfMemoryError with the driver's reason, which need not be a full GPU.
        """
        self._refusals.clear()
        try:
            with torch.cuda.use_mem_pool(self._pool, self._device):
                yield
        except torch.cuda.OutOfMemoryError as error:
            raise torch.cuda.OutOfMemoryError("; ".join([*self._refusals, str(error)])) from error

    def locate(self, tensor: torch.Tensor) -> Located | None:
        """Say where a tensor lies; None when it is not in the pool as one piece."""
        if not tensor.is_contiguous():
            return None
        first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        for address, segment in self._segments.items():
            if address <= first and last <= address + segment.memory.size:
                return Located(segment.number, first - address, segment.memory.size)
        return None

    def export(self, number: int) -> int:
        """Return a new descriptor of a segment, which the caller closes."""
        return next(one.memory.export() for one in self._segments.values() if one.number == number)


def _callbacks(segments: dict[int, _Segment], refusals: list[str], device: torch.device) -> tuple[int, int]:
    """Return the addresses of functions that make and free segments."""
    count = 0

    def allocate(size: int, _device: int, _stream: int | None) -> int:
        nonlocal count
        try:
            memory = DeviceMemory.allocate(size, device)
        except Exception as error:  # noqa: BLE001 - PyTorch takes whatever it is for a full GPU
            refusals.append(f"{type(error).__name__}: {error}")
            return 0
        segments[memory.address] = _Segment(count, memory)
        count += 1
        return memory.address

    def free(address: int, _size: int, _device: int, _stream: int | None) -> None:
        if sys.is_finalizing():
            # The driver takes back what a process held.
            return
        segments.pop(address).memory.close()

    callbacks: tuple[Callable[..., Any], ...] = (_Allocate(allocate), _Free(free))
    _CALLBACKS.append(callbacks)
    addresses = [ctypes.cast(call, ctypes.c_void_p).value for call in callbacks]  # type: ignore[arg-type]
    return addresses[0] or 0, addresses[1] or 0
