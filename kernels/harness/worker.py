"""The candidate's side: imports a submission and runs its operator when told to. Nothing it says is believed.

Runs in the sandbox, as `main(socket descriptor, tree, device)`; the referee holds clock, inputs and answer.
"""

import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from kernels.harness.inputs import Shape

Operator = Callable[..., Any]


def main(arguments: list[str]) -> None:
    """Serve the referee until it hangs up."""
    descriptor, tree, device = int(arguments[0]), arguments[1], arguments[2]
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from kernels.harness import wire

    connection = socket.socket(fileno=descriptor)
    try:
        operators = _load(tree)
    except BaseException as error:  # noqa: BLE001 - whatever the submission raises at import is its own
        traceback.print_exc()
        wire.send(connection, {"failed": "build", "reason": _reason(error)})
        return
    wire.send(connection, {"ready": True})
    while True:
        try:
            received = wire.receive(connection, max_descriptors=2)
        except wire.WireBroken:
            return
        try:
            _run(operators[received.message["operator"]], received.message, received.descriptors, device)
        except MemoryError as error:
            wire.send(connection, {"failed": "memory", "reason": _reason(error)})
        except Exception as error:  # noqa: BLE001 - whatever the operator raises is its own
            traceback.print_exc()
            kind = "memory" if type(error).__name__ == "OutOfMemoryError" else "crash"
            wire.send(connection, {"failed": kind, "reason": _reason(error)})
        else:
            wire.send(connection, {"nonce": received.message["nonce"]})


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _load(tree: str) -> dict[str, Operator]:
    """Import the submission's two operators from the tree that was laid out for it."""
    sys.path.insert(0, tree)
    _keep_first_configuration()
    from fla.ops.quasar.chunk import chunk_quasar
    from fla.ops.quasar.fused_recurrent import fused_recurrent_quasar

    return {"chunk_quasar": chunk_quasar, "fused_recurrent_quasar": fused_recurrent_quasar}


def _keep_first_configuration() -> None:
    """In the interpreter an autotuner has no driver to ask: leave it one configuration."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    import triton

    original = triton.autotune

    def autotune(configs: list[Any], *args: Any, **kwargs: Any) -> Any:
        return original(configs[:1], *args, **kwargs)

    triton.autotune = autotune
    triton.runtime.autotune = autotune


def _run(operator: Operator, message: dict[str, Any], descriptors: list[int], device: str) -> None:
    """Map inputs and output, run the operator, write its output."""
    import torch

    from kernels.harness.inputs import Shape

    shape = Shape(**message["shape"])
    mapping = _mapped_on_host if device == "cpu" else _mapped_on_device
    options = (
        {"cu_seqlens": torch.tensor(message["cu_seqlens"], device=device)} if "cu_seqlens" in message else {}
    )
    with mapping(shape, descriptors, device) as (q, k, v, beta, target):
        result = operator(q, k, v, beta, **options)
        if not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(f"the operator must return (o, final_state), not {type(result).__name__}")
        o = result[0]
        if type(o) is not torch.Tensor or tuple(o.shape) != shape.size or o.dtype != shape.torch_dtype:
            raise TypeError(
                f"o must be a torch.Tensor {list(shape.size)} of {shape.torch_dtype}, "
                f"not {type(o).__name__} {list(getattr(o, 'shape', []))} of {getattr(o, 'dtype', None)}"
            )
        target.copy_(o)
        if device != "cpu":
            torch.cuda.synchronize()


@contextmanager
def _mapped_on_host(shape: "Shape", descriptors: list[int], _device: str) -> "Iterator[tuple[Tensor, ...]]":
    """Give q, k, v, beta and the output, in files."""
    from kernels.harness.memory import map_inputs, map_output

    inputs, output = descriptors
    try:
        flat = map_inputs(inputs, 3 * shape.count + shape.heads)
        target = map_output(output, shape.count)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    q, k, v = (part.view(shape.size).to(shape.torch_dtype) for part in flat[: -shape.heads].chunk(3))
    yield q, k, v, flat[-shape.heads :], target.view(shape.size)


@contextmanager
def _mapped_on_device(shape: "Shape", descriptors: list[int], device: str) -> "Iterator[tuple[Tensor, ...]]":
    """Give q, k, v, beta and the output, in memory of the GPU."""
    import torch

    from kernels.harness.device_memory import DeviceMemory

    place = torch.device(device)
    tensor_bytes = shape.count * shape.torch_dtype.itemsize
    inputs, output = descriptors
    try:
        source = DeviceMemory.receive(inputs, 3 * tensor_bytes + 4 * shape.heads, place)
        target = DeviceMemory.receive(output, tensor_bytes, place)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    q, k, v = (
        source.bytes[index * tensor_bytes :][:tensor_bytes].view(shape.torch_dtype).view(shape.size)
        for index in range(3)
    )
    beta = source.bytes[3 * tensor_bytes :].view(torch.float32)
    try:
        yield q, k, v, beta, target.bytes.view(shape.torch_dtype).view(shape.size)
    finally:
        source.close()
        target.close()
