"""Kernels that are launched again and again with nothing changed but the tensors."""

from typing import Any

import torch


class BoundKernel:
    """A Triton kernel with its grid, its constants (all arguments after the tensors) and options.

    The first launch for tensors of some types goes through Triton, which looks at every argument and
    compiles; later ones go straight to what it has compiled. That is most of the time of a short call.
    Belongs to the GPU that is current at its first launch.
    """

    __slots__ = ("_constants", "_grid", "_kernel", "_options", "_runners")

    def __init__(
        self, kernel: Any, grid: tuple[int, int], constants: tuple[Any, ...], **options: Any
    ) -> None:
        self._kernel = kernel
        self._grid = (*grid, 1)
        self._constants = constants
        self._options = options
        self._runners: dict[tuple[tuple[torch.dtype, int], ...], Any] = {}

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Launch on the current stream."""
        # What Triton compiles for: types, and whether an address is a multiple of 16.
        kinds = tuple([(x.dtype, x.data_ptr() % 16) for x in tensors])
        runner = self._runners.get(kinds)
        if runner is not None:
            runner(*tensors, *self._constants)
            return
        compiled = self._kernel[self._grid](*tensors, *self._constants, **self._options)
        if compiled is not None:  # the interpreter compiles nothing
            self._runners[kinds] = compiled[self._grid]
