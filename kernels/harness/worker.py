"""The candidate's side: imports a submission and runs its operator when told to. Nothing it says is believed.

Runs in the sandbox, as `main(socket descriptor, tree, device)`; the referee holds clock, inputs and answer.
"""

import contextlib
import gc
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as DType

    from kernels.harness.rooms import Output, Room

Operator = Callable[..., Any]


def main(arguments: list[str]) -> None:
    """Serve the referee until it hangs up."""
    descriptor, tree, device = int(arguments[0]), arguments[1], arguments[2]
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from kernels.harness import wire
    from kernels.harness.rooms import make_room

    connection = socket.socket(fileno=descriptor)
    room = make_room(device)
    # What failed until here, PyTorch's import and the GPU's start among it, is the host's fault.
    wire.send(connection, wire.STARTED)
    try:
        operators = _load(tree)
    except BaseException as error:  # noqa: BLE001 - whatever the submission raises at import is its own
        traceback.print_exc()
        kind = "memory" if _is_for_memory(error) else "build"
        wire.send(connection, {"failed": kind, "reason": _reason(error)})
        return
    # The collector runs between trials, over what they have left: over all of PyTorch it takes 0.1 s.
    gc.disable()
    gc.freeze()
    wire.send(connection, wire.READY)
    serve(connection, operators, room)


def serve(connection: socket.socket, operators: Mapping[str, Operator], room: "Room") -> None:
    """Answer roll calls and run trials until the referee hangs up."""
    from kernels.harness import wire

    placed = _Placed()
    while True:
        try:
            received = wire.receive(connection, max_descriptors=room.max_descriptors, spin_s=room.spin_s)
        except wire.WireBroken:
            return
        message = received.message
        if "roll_call" in message:
            placed.on(message.get("processor"))
            wire.send(connection, {"present": message["roll_call"]})
            continue
        try:
            output = run(operators[message["operator"]], message, received.descriptors, room)
        except MemoryError as error:
            wire.send(connection, {"failed": "memory", "reason": _reason(error)})
        except Exception as error:  # noqa: BLE001 - whatever the operator raises is its own
            traceback.print_exc()
            kind = "memory" if _is_for_memory(error) else "crash"
            wire.send(connection, {"failed": kind, "reason": _reason(error)})
        else:
            wire.send(connection, {"nonce": message["nonce"], **output.fields}, output.descriptors)
        room.tidy()
        gc.collect()


class _Placed:
    """Where the thread that runs the operator is allowed to run."""

    def __init__(self) -> None:
        self._anywhere = os.sched_getaffinity(0)
        self._processor: int | None = None

    def on(self, processor: int | None) -> None:
        """Move to a processor, or let the kernel choose again."""
        if processor == self._processor:
            return
        self._processor = processor
        # A host may forbid it: trials are a little less alike then.
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, self._anywhere if processor is None else {processor})


def _is_for_memory(error: BaseException) -> bool:
    """Whether no memory was left: Python and PyTorch have types for it, Triton and CUDA a text."""
    is_typed = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return is_typed or "out of memory" in str(error)


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


def run(operator: Operator, message: dict[str, Any], descriptors: list[int], room: "Room") -> "Output":
    """Run the operator on the inputs that came, and leave its outputs where the referee finds them."""
    import torch

    from kernels.harness.inputs import Shape, chained_beta

    shape = Shape(**message["shape"])
    outputs: list[torch.Tensor] = []
    calls, timed = message["calls"], message.get("timed", False)
    with room.allocations():
        for q, k, v, beta in islice(room.enter(shape, message["sets"], descriptors), calls):
            # Not the first call, unless it is the only one: the GPU waits for the launch of that.
            if timed and len(outputs) < 2:
                room.mark()
            options = {}
            if "cu_seqlens" in message:
                options["cu_seqlens"] = torch.tensor(message["cu_seqlens"], device=q.device)
            if outputs:
                beta = chained_beta(beta, outputs[-1])
            if "parts" in message:
                outputs.append(_in_parts(operator, (q, k, v), beta, message["parts"]))
            else:
                outputs.append(_tensor(operator(q, k, v, beta, **options), 0, shape.size, q.dtype))
    if timed:
        room.mark()
    if len({output.data_ptr() for output in outputs}) < len(outputs):
        # Said here, and not as a wrong output, for the honest; whoever hides it has wrong outputs.
        raise RuntimeError(
            "two calls returned the same memory, and the second overwrote what the first had returned: "
            "clone what a CUDA graph or a buffer of yours holds before you return it"
        )
    output = room.leave(outputs)
    if timed:
        output.fields["call_s"] = room.between_marks_s() / max(1, calls - 1)
    return output


def _in_parts(
    operator: Operator, qkv: "tuple[Tensor, Tensor, Tensor]", beta: "Tensor", borders: list[int]
) -> "Tensor":
    """Return o [B, T, H, D] of a sequence that comes in parts, each from the state after the one before."""
    import torch

    batch, _, heads, dim = qkv[0].shape
    outputs, state = [], None
    for start, end in pairwise(borders):
        q, k, v = (tensor[:, start:end].contiguous() for tensor in qkv)
        result = operator(q, k, v, beta, initial_state=state, output_final_state=True)
        outputs.append(_tensor(result, 0, tuple(q.shape), q.dtype))
        state = _tensor(result, 1, (batch, heads, dim, dim), torch.float32)
    return torch.cat(outputs, dim=1)


def _tensor(result: Any, place: int, size: tuple[int, ...], dtype: "DType") -> "Tensor":
    """Return o or the final state of what an operator returned. Raises TypeError when it is no such thing."""
    import torch

    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"the operator must return (o, final_state), not {type(result).__name__}")
    found = result[place]
    if type(found) is not torch.Tensor or tuple(found.shape) != size or found.dtype != dtype:
        raise TypeError(
            f"{('o', 'final_state')[place]} must be a torch.Tensor {list(size)} of {dtype}, not "
            f"{type(found).__name__} {list(getattr(found, 'shape', []))} of {getattr(found, 'dtype', None)}"
        )
    return found
