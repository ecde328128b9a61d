"""GPU memory shared between referee and worker by descriptor, through the driver's virtual memory API.

The worker can read nothing before it has the descriptor, and nothing is copied when it has. `cuda-bindings`
comes with PyTorch's CUDA build; it is imported where it is used, so that a machine without a GPU needs none.
"""

import functools
import os
from typing import Any

import torch


class DeviceMemory:
    """`size` bytes of GPU memory mapped into this process at `address`; `close` it at the end.

    Raises RuntimeError with the driver's name of the error; torch.cuda.OutOfMemoryError when the GPU is full.
    """

    def __init__(self, handle: Any, size: int, device: torch.device) -> None:
        from cuda.bindings import driver

        self._handle, self._device, self.size = handle, device, size
        self._padded = _padded(size, device)
        self._address = _call(driver.cuMemAddressReserve, self._padded, 0, 0, 0)
        self._is_mapped = False
        try:
            _call(driver.cuMemMap, self._address, self._padded, 0, handle, 0)
            self._is_mapped = True
            _call(driver.cuMemSetAccess, self._address, self._padded, [_read_and_write(device)], 1)
        except BaseException:
            self._let_go()
            raise

    @classmethod
    def allocate(cls, size: int, device: torch.device) -> "DeviceMemory":
        """Take new memory; what it holds is undefined."""
        from cuda.bindings import driver

        enter_context(device)
        return cls(_call(driver.cuMemCreate, _padded(size, device), _properties(device), 0), size, device)

    @classmethod
    def receive(cls, descriptor: int, size: int, device: torch.device) -> "DeviceMemory":
        """Map memory that another process has allocated; `descriptor` may be closed afterwards."""
        from cuda.bindings import driver

        kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        enter_context(device)
        return cls(_call(driver.cuMemImportFromShareableHandle, descriptor, kind), size, device)

    @property
    def address(self) -> int:
        """Where it is mapped in this process."""
        return int(self._address)

    @functools.cached_property
    def bytes(self) -> torch.Tensor:
        """The memory as a uint8 tensor [size]."""
        return torch.as_tensor(_Exposed(self.address, self.size), device=self._device)

    def export(self) -> int:
        """Return a new descriptor of the memory, which the caller closes."""
        from cuda.bindings import driver

        kind = driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
        descriptor = int(_call(driver.cuMemExportToShareableHandle, self._handle, kind, 0))
        os.set_inheritable(descriptor, False)
        return descriptor

    def close(self) -> None:
        """Unmap; tensors over it must not be used any more. The memory goes with its last handle."""
        torch.cuda.synchronize(self._device)
        self.__dict__.pop("bytes", None)
        self._let_go()

    def _let_go(self) -> None:
        from cuda.bindings import driver

        if self._is_mapped:
            _call(driver.cuMemUnmap, self._address, self._padded)
        _call(driver.cuMemAddressFree, self._address, self._padded)
        _call(driver.cuMemRelease, self._handle)


@functools.cache
def enter_context(device: torch.device) -> None:
    """Have PyTorch make its context, in which the driver's API then works, once for each process.

    Before memory comes from a pool that is made of this: it takes some itself.
    """
    torch.cuda.set_device(device)
    torch.empty(1, device=device)


class _Exposed:
    """Device memory as PyTorch takes it from strangers."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def _call(function: Any, *arguments: Any) -> Any:
    """Call the driver and return its one result, if it has one."""
    error, *results = function(*arguments)
    if int(error) != 0:
        if error.name == "CUDA_ERROR_OUT_OF_MEMORY":
            raise torch.cuda.OutOfMemoryError(f"{function.__name__}: {error.name}")
        raise RuntimeError(f"{function.__name__}: {error.name}")
    return results[0] if results else None


# The next three are asked for once: a trial's clock runs while its inputs are mapped.


@functools.cache
def _properties(device: torch.device) -> Any:
    from cuda.bindings import driver

    properties = driver.CUmemAllocationProp()
    properties.type = driver.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    properties.requestedHandleTypes = (
        driver.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
    )
    properties.location.type = driver.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    properties.location.id = device.index or 0
    return properties


@functools.cache
def _read_and_write(device: torch.device) -> Any:
    from cuda.bindings import driver

    access = driver.CUmemAccessDesc()
    access.location = _properties(device).location
    access.flags = driver.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    return access


@functools.cache
def _unit(device: torch.device) -> int:
    """Return how many bytes the driver maps at once."""
    from cuda.bindings import driver

    minimum = driver.CUmemAllocationGranularity_flags.CU_MEM_ALLOC_GRANULARITY_MINIMUM
    return int(_call(driver.cuMemGetAllocationGranularity, _properties(device), minimum))


def _padded(size: int, device: torch.device) -> int:
    return -(-size // _unit(device)) * _unit(device)
