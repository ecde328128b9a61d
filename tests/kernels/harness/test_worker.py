"""The worker's side: calls that hang together, and outputs that are none."""

import os
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from kernels.harness import wire
from kernels.harness.inputs import InputSets, Shape, chained_beta, draw_inputs
from kernels.harness.rooms import HostRoom, InputSet, Output, laid_out
from kernels.harness.session import CandidateFailed, Session
from kernels.harness.worker import Operator, run, serve
from kernels.reference import chunked

SHAPE = Shape(batch=1, length=40, heads=2, dim=8, dtype="float32")
DRAWN = [draw_inputs(SHAPE, torch.Generator().manual_seed(seed)) for seed in range(3)]


class Memory:
    """A room that hands out tensors and keeps the outputs."""

    max_descriptors = 0
    spin_s = 0.0

    def __init__(self) -> None:
        self.outputs: list[torch.Tensor] = []
        self.calls = 0
        self.marked: list[int] = []
        """How many calls had been made at each mark."""

    def enter(self, shape: Shape, sets: int, descriptors: list[int]) -> Iterator[InputSet]:
        assert (shape, descriptors) == (SHAPE, [])
        yield from ((one.q, one.k, one.v, one.beta) for one in DRAWN[:sets])

    def allocations(self) -> Any:
        return nullcontext()

    def mark(self) -> None:
        self.marked.append(self.calls)

    def between_marks_s(self) -> float:
        return float(self.marked[-1] - self.marked[-2])

    def leave(self, outputs: list[torch.Tensor]) -> Output:
        self.outputs = outputs
        return Output({"left": len(outputs)})

    def tidy(self) -> None:
        pass


def message(**changes: object) -> dict[str, Any]:
    return {"shape": SHAPE.as_message(), "sets": 3, "calls": 3, **changes}


def test_each_call_depends_on_the_last_token_of_the_one_before() -> None:
    room = Memory()
    assert run(chunked, message(), [], room).fields == {"left": 3}
    for number, (one, output) in enumerate(zip(DRAWN, room.outputs, strict=True)):
        beta = chained_beta(one.beta, room.outputs[number - 1]) if number else one.beta
        assert bool((beta >= one.beta).all())
        assert torch.equal(output, chunked(one.q, one.k, one.v, beta)[0])
    apart = chunked(DRAWN[1].q, DRAWN[1].k, DRAWN[1].v, DRAWN[1].beta)[0]
    assert float((room.outputs[1] - apart).norm() / apart.norm()) > 0.05


def test_fewer_calls_than_sets() -> None:
    room = Memory()
    run(chunked, message(calls=1), [], room)
    assert len(room.outputs) == 1


@pytest.mark.parametrize(
    "shape", [SHAPE, Shape(batch=2, length=7, heads=3, dim=6, dtype="bfloat16")], ids=str
)
def test_sets_are_read_where_they_were_written(shape: Shape) -> None:
    drawn = [draw_inputs(shape, torch.Generator().manual_seed(seed)) for seed in range(3)]
    memory = torch.zeros(3 * shape.set_bytes, dtype=torch.uint8)
    for one, target in zip(drawn, memory.split(shape.set_bytes), strict=True):
        one.pack(target)
    for one, (q, k, v, beta) in zip(drawn, laid_out(memory, shape, 3), strict=True):
        for written, read in ((one.q, q), (one.k, k), (one.v, v)):
            assert read.dtype == shape.torch_dtype
            assert read.is_contiguous()
            assert torch.equal(written, read.float())
        assert torch.equal(one.beta, beta)


@pytest.mark.parametrize(("calls", "marked"), [(1, [0, 1]), (2, [0, 1, 2]), (3, [0, 1, 3])])
def test_a_timed_call_is_not_the_first_of_several(calls: int, marked: list[int]) -> None:
    room = Memory()

    def counted(*tensors: torch.Tensor, **options: Any) -> Any:
        room.calls += 1
        return chunked(*tensors, **options)

    # The room's time is the number of calls: one of them takes 1.
    fields = run(counted, {**message(calls=calls), "timed": True}, [], room).fields
    assert (room.marked, fields) == (marked, {"left": calls, "call_s": 1.0})


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (torch.zeros(SHAPE.size), "must return (o, final_state), not Tensor"),
        ((torch.zeros(1, 40, 2, 7), None), "[1, 40, 2, 7]"),
        ((torch.zeros(SHAPE.size, dtype=torch.float64), None), "torch.float64"),
        ((torch.nn.Parameter(torch.zeros(SHAPE.size)), None), "not Parameter"),
        ((None, None), "not NoneType"),
    ],
    ids=["no pair", "shape", "dtype", "subclass", "nothing"],
)
def test_what_is_no_output(result: Any, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        run(lambda *tensors: result, message(), [], Memory())
    assert said in str(caught.value)


def test_one_buffer_for_all_outputs_is_said_to_be_one() -> None:
    static = torch.empty(SHAPE.size)

    def replayed(*tensors: torch.Tensor, **options: Any) -> Any:
        return static.copy_(chunked(*tensors, **options)[0]), None

    run(replayed, message(calls=1), [], Memory())
    with pytest.raises(RuntimeError, match="two calls returned the same memory"):
        run(replayed, message(calls=2), [], Memory())


def test_a_sequence_in_parts_goes_from_state_to_state() -> None:
    room, lengths = Memory(), []

    def noted(q: torch.Tensor, *tensors: torch.Tensor, **options: Any) -> Any:
        lengths.append((q.shape[1], options["initial_state"] is not None))
        assert q.is_contiguous()
        return chunked(q, *tensors, **options)

    run(noted, message(calls=1, parts=[0, 17, 18, 40]), [], room)
    assert lengths == [(17, False), (1, True), (22, True)]
    whole = chunked(DRAWN[0].q, DRAWN[0].k, DRAWN[0].v, DRAWN[0].beta)[0]
    assert torch.allclose(room.outputs[0], whole, atol=1e-5)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, "not NoneType"),
        (torch.zeros(1, 2, 8, 7), "[1, 2, 8, 7]"),
        (torch.zeros(1, 2, 8, 8, dtype=torch.bfloat16), "of torch.bfloat16"),
    ],
    ids=["nothing", "shape", "dtype"],
)
def test_what_is_no_state(state: Any, said: str) -> None:
    with pytest.raises(TypeError) as caught:
        run(
            lambda q, *tensors, **options: (torch.zeros_like(q), state),
            message(calls=1, parts=[0, 17, 40]),
            [],
            Memory(),
        )
    assert str(caught.value).startswith("final_state must be a torch.Tensor [1, 2, 8, 8] of torch.float32")
    assert said in str(caught.value)


def where_it_runs(*processors: int | None) -> list[set[int]]:
    """Return the processors on which the operator could run in trials that ask for these."""
    seen = []

    def operator(*tensors: torch.Tensor) -> Any:
        seen.append(os.sched_getaffinity(0))
        return chunked(*tensors)

    serve_trials(operator, *processors)
    return seen


def serve_trials(operator: Operator, *processors: int | None) -> None:
    """Have an operator serve a trial on each of the processors."""
    ours, theirs = wire.socket_pair()
    thread = threading.Thread(target=serve, args=(theirs, {"chunk_quasar": operator}, HostRoom()))
    thread.start()
    try:
        session = Session(ours, deadline_s=lambda: 60.0)
        for processor in processors:
            sets = InputSets(shape=SHAPE, count=1, draw=lambda number: DRAWN[number])
            session.run(sets, np.random.default_rng(0), processor=processor)
    finally:
        ours.close()
        thread.join()
        theirs.close()


def test_an_operator_runs_where_the_trial_asks_for_it() -> None:
    anywhere = os.sched_getaffinity(0)
    one = max(anywhere)
    assert where_it_runs(None, one, one, None) == [anywhere, {one}, {one}, anywhere]


def test_a_host_that_lets_no_thread_be_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    anywhere = os.sched_getaffinity(0)

    def forbidden(*_: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    assert where_it_runs(max(anywhere)) == [anywhere]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "memory"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("out of resource: shared memory"), "crash"),
    ],
)
def test_what_an_operator_raises(error: Exception, kind: str) -> None:
    def operator(*_: torch.Tensor) -> Any:
        raise error

    with pytest.raises(CandidateFailed, match=type(error).__name__) as caught:
        serve_trials(operator, None)
    assert caught.value.kind == kind
