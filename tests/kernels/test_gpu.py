"""What only a GPU can show: long sequences, equal results from equal calls, every preset."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from kernels import chunk
from kernels.fused_recurrent import fused_recurrent_quasar
from kernels.harness import wire, worker
from kernels.harness.buffers import MAX_CALLS, DeviceGround
from kernels.harness.device_memory import DeviceMemory, enter_context
from kernels.harness.inputs import Inputs, InputSets, Shape, chained_beta, draw_inputs
from kernels.harness.rooms import make_room
from kernels.harness.session import CandidateFailed, Session, Trial
from kernels.harness.shared_pool import SharedPool
from kernels.presets import PRESETS, Preset
from kernels.reference import chunked
from tests.kernels.conftest import Draw, relative_error
from tests.kernels.tolerances import RELATIVE_ERROR, STATE_ERROR

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [16_384, 65_537])
def test_long_sequences(dtype: torch.dtype, length: int, draw: Draw) -> None:
    inputs = draw(length=length, heads=4, dim=64, dtype=dtype)
    exact, _ = chunked(**inputs, dtype=torch.float64)
    o, _ = chunk.chunk_quasar(**inputs)
    again, _ = chunk.chunk_quasar(**inputs)
    assert relative_error(o, exact) <= RELATIVE_ERROR[dtype]
    assert torch.equal(o, again)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize("boundaries", [None, [0, 1, 1, 700, 4097]])
def test_segments_with_states(
    dtype: torch.dtype, dim: int, boundaries: list[int] | None, draw: Draw, device: torch.device
) -> None:
    inputs = draw(length=4097, heads=2, dim=dim, dtype=dtype)
    sequences = 1 if boundaries is None else len(boundaries) - 1
    generator = torch.Generator(device).manual_seed(1)
    options = {
        "initial_state": torch.randn(sequences, 2, dim, dim, generator=generator, device=device),
        "cu_seqlens": None if boundaries is None else torch.tensor(boundaries, device=device),
        "output_final_state": True,
    }
    exact, exact_state = chunked(**inputs, **options, dtype=torch.float64)
    o, state = chunk.chunk_quasar(**inputs, **options)
    assert exact_state is not None
    assert state is not None
    assert relative_error(o, exact) <= RELATIVE_ERROR[dtype]
    assert relative_error(state, exact_state) <= STATE_ERROR[dtype]


# Norms of 400 are for the types that hold 1 / |k|^2 then: float16 does up to 128.
EXTREMES = [
    *((dtype, 50.0, 1.0) for dtype in (torch.float32, torch.bfloat16)),
    *(
        (dtype, *values)
        for dtype in DTYPES
        for values in ((6.0, 1.0), (6.0, 50.0), (1.0, 1e-4), (1e-3, 50.0))
    ),
]


@pytest.mark.parametrize(("dtype", "key_scale", "beta"), EXTREMES)
def test_extremes_of_keys_and_beta(dtype: torch.dtype, key_scale: float, beta: float, draw: Draw) -> None:
    inputs = draw(length=1000, heads=2, dim=64, dtype=dtype)
    inputs["k"] = inputs["k"] * key_scale
    inputs["beta"].fill_(beta)
    exact, _ = chunked(**inputs, dtype=torch.float64)
    o, _ = chunk.chunk_quasar(**inputs)
    assert relative_error(o, exact) <= RELATIVE_ERROR[dtype]


@pytest.mark.parametrize("operator", [chunk.chunk_quasar, fused_recurrent_quasar])
def test_addresses_need_no_alignment(operator: Callable[..., Any], draw: Draw, device: torch.device) -> None:
    """Kernels compiled for aligned tensors are not launched with others of the same shape."""
    inputs = draw(length=300, heads=2, dim=64, dtype=torch.bfloat16)
    expected, _ = operator(**inputs)
    for name in ("q", "k", "v"):
        moved = torch.empty(inputs[name].numel() + 1, dtype=torch.bfloat16, device=device)[1:]
        moved = moved.view(inputs[name].shape).copy_(inputs[name])
        assert moved.data_ptr() % 16
        o, _ = operator(**{**inputs, name: moved})
        assert torch.equal(o, expected)
    wider, _ = operator(**{**inputs, "beta": inputs["beta"].double()})
    assert torch.equal(wider, expected)


@pytest.mark.parametrize("length", [1_000_000, 4_300_000], ids=["a-million", "beyond-2^31-numbers"])
def test_extreme_lengths(length: int, device: torch.device) -> None:
    generator = torch.Generator(device).manual_seed(1)
    q, k, v = (
        torch.randn(1, length, 8, 64, generator=generator, device=device, dtype=torch.bfloat16)
        for _ in range(3)
    )
    beta = torch.linspace(0.05, 1.5, 8, device=device)
    o, state = chunk.chunk_quasar(q, k, v, beta, output_final_state=True)
    assert state is not None
    for head in (0, 7):
        heads = [x[:, :, head : head + 1].contiguous() for x in (q, k, v)]
        exact, exact_state = chunked(
            *heads, beta[head : head + 1], output_final_state=True, dtype=torch.float64
        )
        assert exact_state is not None
        for start in range(0, length, 100_000):
            part = slice(start, start + 1000)
            actual = o[:, part, head : head + 1]
            assert relative_error(actual, exact[:, part]) <= RELATIVE_ERROR[torch.bfloat16]
        assert relative_error(state[:, head : head + 1], exact_state) <= STATE_ERROR[torch.bfloat16]


@pytest.mark.skipif(shutil.which("compute-sanitizer") is None, reason="needs compute-sanitizer")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer(tool: str) -> None:
    done = subprocess.run(
        ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "5",
         sys.executable, "-m", "tests.kernels.sanitize_all"],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True, text=True, timeout=550, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


def test_token_by_token_over_a_long_sequence(draw: Draw) -> None:
    inputs = draw(length=16_385, heads=4, dim=64)
    exact, _ = chunked(**inputs, dtype=torch.float64)
    o, _ = fused_recurrent_quasar(**inputs)
    assert relative_error(o, exact) <= RELATIVE_ERROR[torch.float32]


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.gpu)
@pytest.mark.parametrize("dim", [32, 64, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_presets(preset: Preset, dim: int, dtype: torch.dtype, draw: Draw) -> None:
    inputs = draw(length=300, dim=dim, dtype=dtype)
    exact, _ = chunked(**inputs, dtype=torch.float64)
    o, _ = chunk.launch_chunk_quasar(preset.launch, **inputs)
    assert relative_error(o, exact) <= RELATIVE_ERROR[dtype]


def test_memory_is_shared_by_descriptor(device: torch.device) -> None:
    device = torch.device("cuda:0")
    ours = DeviceMemory.allocate(1000, device)
    ours.bytes.copy_(torch.arange(1000, device=device).to(torch.uint8))
    descriptor = ours.export()
    theirs = DeviceMemory.receive(descriptor, 1000, device)
    os.close(descriptor)
    assert torch.equal(theirs.bytes, ours.bytes)
    theirs.bytes[7] = 99
    assert int(ours.bytes[7]) == 99
    theirs.close()
    ours.close()


SHAPE = Shape(batch=1, length=1000, heads=8, dim=64, dtype="bfloat16")


Peer = Callable[[socket.socket, wire.Received], None]


def drawn(number: int) -> Inputs:
    return draw_inputs(SHAPE, torch.Generator("cuda:0").manual_seed(number))


def trial_with(peer: Peer, *, sets: int = 1, calls: int = 1) -> Trial:
    """Run one trial on the GPU against a peer in a thread."""
    ours, theirs = wire.socket_pair()

    def serve() -> None:
        wire.send(theirs, {"present": wire.receive(theirs).message["roll_call"]})
        peer(theirs, wire.receive(theirs, max_descriptors=2))
        with contextlib.suppress(wire.WireBroken, OSError):
            wire.send(theirs, {"present": wire.receive(theirs, timeout_s=10.0).message["roll_call"]})

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        session = Session(ours, deadline_s=lambda: 60.0, device=torch.device("cuda:0"))
        with contextlib.closing(session):
            return session.run(
                InputSets(shape=SHAPE, count=sets, draw=drawn), np.random.default_rng(0), calls=calls
            )
    finally:
        ours.close()
        thread.join()
        theirs.close()


def run_honestly(operator: Callable[..., Any]) -> Peer:
    """A peer that does what the sandboxed worker does."""

    def peer(connection: socket.socket, received: wire.Received) -> None:
        room = make_room("cuda:0")
        output = worker.run(operator, received.message, received.descriptors, room)
        wire.send(connection, {"nonce": received.message["nonce"], **output.fields}, output.descriptors)
        room.tidy()

    return peer


def test_trial_reads_the_workers_memory() -> None:
    trial = trial_with(run_honestly(chunk.chunk_quasar))
    inputs = drawn(0)
    exact, _ = chunked(inputs.q, inputs.k, inputs.v, inputs.beta, dtype=torch.float64)
    assert relative_error(trial.outputs[0], exact) <= RELATIVE_ERROR[torch.bfloat16]
    assert trial.seconds > 0


def test_calls_of_one_trial_hang_together() -> None:
    trial = trial_with(run_honestly(chunk.chunk_quasar), sets=4, calls=3)
    assert len(trial.outputs) == 3
    for number, output in enumerate(trial.outputs):
        inputs = drawn(number)
        beta = chained_beta(inputs.beta, trial.outputs[number - 1]) if number else inputs.beta
        exact, _ = chunked(inputs.q, inputs.k, inputs.v, beta, dtype=torch.float64)
        assert relative_error(output, exact) <= RELATIVE_ERROR[torch.bfloat16]
        if number:
            # Without what the call before gave, the result is another.
            apart, _ = chunked(inputs.q, inputs.k, inputs.v, inputs.beta, dtype=torch.float64)
            assert relative_error(output, apart) > 0.05


@pytest.mark.parametrize(
    "operator",
    [
        lambda q, k, v, beta: (v, None),
        lambda q, k, v, beta: (v.transpose(0, 1).contiguous().transpose(0, 1), None),
        lambda q, k, v, beta: (torch.cat([v, v], dim=2)[:, :, v.shape[2] :], None),
        lambda q, k, v, beta: (torch.cat([v, v], dim=1)[:, v.shape[1] :], None),
    ],
    ids=["an input", "strided", "a part", "an offset"],
)
def test_outputs_of_any_layout_arrive(operator: Callable[..., Any]) -> None:
    trial = trial_with(run_honestly(operator))
    assert torch.equal(trial.outputs[0], drawn(0).v)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"segments": [], "outputs": [[0, 0]]}, "never described"),
        ({"segments": [[0, 2**21]], "outputs": [[0, 0]]}, "in 0 pairs"),
        ({"segments": [], "outputs": []}, "in 1 pairs"),
        ({"segments": [], "outputs": [[0, 0], [0, 0]]}, "in 1 pairs"),
        ({"segments": [], "outputs": [[0, 0.0]]}, "in 1 pairs"),
        ({"segments": [], "outputs": [[True, 0]]}, "in 1 pairs"),
        ({"segments": None, "outputs": None}, "in 0 pairs"),
        ({"segments": []}, "not part of the protocol"),
    ],
)
def test_an_output_that_is_nowhere(fields: dict[str, Any], message: str) -> None:
    def idle(connection: socket.socket, received: wire.Received) -> None:
        for descriptor in received.descriptors:
            os.close(descriptor)
        wire.send(connection, {"nonce": received.message["nonce"], **fields})

    with pytest.raises(CandidateFailed, match=message) as caught:
        trial_with(idle)
    assert caught.value.kind == "tampered"


def test_what_a_worker_has_described_once_stays_mapped() -> None:
    device = torch.device("cuda:0")
    shape = Shape(batch=1, length=16, heads=1, dim=64, dtype="bfloat16")
    pieces = [DeviceMemory.allocate(2**11, device) for _ in range(4 * MAX_CALLS)]
    for number, piece in enumerate(pieces):
        piece.bytes.view(torch.int16).fill_(number)
    with contextlib.closing(DeviceGround(device)) as ground:
        for first in range(0, len(pieces), MAX_CALLS):
            descriptors = [piece.export() for piece in pieces[first : first + MAX_CALLS]]
            ground.map_segments([[first + at, 2**11] for at in range(MAX_CALLS)], descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
        for number in range(len(pieces)):
            assert (ground.rows(number, 0, shape) == number).all()
    for piece in pieces:
        piece.close()


def test_pytorch_gives_nothing_of_a_pool_back() -> None:
    """The referee keeps what a worker has described for as long as the worker lives."""
    device = torch.device("cuda:0")
    enter_context(device)
    pool = SharedPool(device)
    with pool.use():
        tensors = [torch.empty(2**25, dtype=torch.uint8, device=device) for _ in range(3)]
    places = [pool.locate(tensor) for tensor in tensors]
    del tensors
    torch.cuda.empty_cache()
    with pytest.raises(torch.cuda.OutOfMemoryError), pool.use():
        torch.empty(2**42, dtype=torch.uint8, device=device)
    for place in places:
        assert place is not None
        os.close(pool.export(place.segment))


def describe(size: int, *, said: int, offset: int) -> Peer:
    """A peer that hands over new memory, says how large it is, and where in it an output lies."""

    def peer(connection: socket.socket, received: wire.Received) -> None:
        for descriptor in received.descriptors:
            os.close(descriptor)
        memory = DeviceMemory.allocate(size, torch.device("cuda:0"))
        descriptor = memory.export()
        fields = {"segments": [[7, said]], "outputs": [[7, offset]]}
        wire.send(connection, {"nonce": received.message["nonce"], **fields}, (descriptor,))
        os.close(descriptor)
        memory.close()

    return peer


@pytest.mark.parametrize("offset", [-2, 1, 2**20])
def test_an_output_that_is_not_inside_its_memory(offset: int) -> None:
    with pytest.raises(CandidateFailed, match="is not at") as caught:
        trial_with(describe(2**20, said=2**20, offset=offset))
    assert caught.value.kind == "tampered"


def test_a_descriptor_that_is_no_memory_of_the_gpu() -> None:
    def lie(connection: socket.socket, received: wire.Received) -> None:
        for descriptor in received.descriptors:
            os.close(descriptor)
        memory = os.memfd_create("no memory of a GPU")
        os.ftruncate(memory, 2**21)
        fields = {"segments": [[0, 2**21]], "outputs": [[0, 0]]}
        wire.send(connection, {"nonce": received.message["nonce"], **fields}, (memory,))
        os.close(memory)

    with pytest.raises(CandidateFailed, match="cannot be mapped") as caught:
        trial_with(lie)
    assert caught.value.kind == "tampered"


@pytest.mark.parametrize("said", [-1, 0, 2**46, 2**70])
def test_memory_that_no_gpu_has(said: int) -> None:
    with pytest.raises(CandidateFailed, match="bytes of memory on a GPU of") as caught:
        trial_with(describe(2**21, said=said, offset=0))
    assert caught.value.kind == "tampered"


def test_an_output_smaller_than_it_is_said_to_be() -> None:
    with pytest.raises(CandidateFailed, match="cannot be mapped") as caught:
        trial_with(describe(2**21, said=2**23, offset=2**21))
    assert caught.value.kind == "tampered"
