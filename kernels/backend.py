"""The only place of this package that imports Triton, and what host code needs to know about it.

In the interpreter a bfloat16 dot is silently wrong and an autotuner with several configurations has no
driver to ask: kernels upcast every operand to float32 and take their one configuration from the host. The
names beside Triton's stand for those of `fla.utils`, which the exported files use instead.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar

import torch
import triton
import triton.language as tl

P = ParamSpec("P")
R = TypeVar("R")

INTERPRET: Final = bool(triton.knobs.runtime.interpret)
"""True when TRITON_INTERPRET=1 was set before Triton was imported: kernels run on the CPU."""

IS_AMD: Final = torch.version.hip is not None

_SHARED_MEMORY_BYTES: Final = {"ada": 101_376, "ampere": 166_912, "hopper": 232_448}
"""What one program can have at most on an RTX 4090, an A100 and an H100."""


@functools.cache
def check_shared_mem(arch: str, tensor_idx: int = 0) -> bool:
    """Say whether GPU number `tensor_idx` has the shared memory of `arch`: ada, ampere or hopper.

    Raises:
        KeyError: no such architecture.
    """
    needed = _SHARED_MEMORY_BYTES[arch]
    if not torch.cuda.is_available():
        return False
    properties: Any = torch.cuda.get_device_properties(tensor_idx)
    return bool(properties.shared_memory_per_block_optin >= needed)


def input_guard(operator: Callable[P, R]) -> Callable[P, R]:
    """Give `operator` contiguous tensors, and launch on the GPU that holds them."""

    @functools.wraps(operator)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        packed = tuple(map(_contiguous, args))
        named = {name: _contiguous(value) for name, value in kwargs.items()}
        tensors = (value for value in (*packed, *named.values()) if isinstance(value, torch.Tensor))
        first = next(tensors, None)
        with (
            torch.cuda.device(first.device)
            if first is not None and first.is_cuda
            else contextlib.nullcontext()
        ):
            return operator(*packed, **named)

    return guarded


def _contiguous(value: Any) -> Any:
    return value.contiguous() if isinstance(value, torch.Tensor) else value


__all__ = ["INTERPRET", "IS_AMD", "check_shared_mem", "input_guard", "tl", "triton"]
