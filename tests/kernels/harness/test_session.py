"""The referee's side of a trial, against a peer that does what it likes."""

import contextlib
import gc
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kernels.harness import buffers, wire
from kernels.harness.buffers import NoRoomToMap
from kernels.harness.inputs import Inputs, InputSets, Shape, draw_inputs
from kernels.harness.memory import map_inputs, map_output
from kernels.harness.session import CandidateFailed, Session, Trial, WorkerNotStarted

SHAPE = Shape(batch=1, length=24, heads=2, dim=8, dtype="float32")
INPUTS = draw_inputs(SHAPE, torch.Generator().manual_seed(3))
SETS = InputSets(shape=SHAPE, count=1, draw=lambda number: INPUTS)

Peer = Callable[[socket.socket, wire.Received], None]


def answer_roll_call(connection: socket.socket) -> None:
    wire.send(connection, {"present": wire.receive(connection, timeout_s=60.0).message["roll_call"]})


def run_trial(peer: Peer, *, deadline_s: Callable[[], float] = lambda: 60.0) -> Trial:
    """Run one trial against a peer in a thread, which gets the first message and may do anything."""
    ours, theirs = wire.socket_pair()

    def serve() -> None:
        answer_roll_call(theirs)
        received = wire.receive(theirs, timeout_s=60.0, max_descriptors=2)
        try:
            peer(theirs, received)
            with contextlib.suppress(wire.WireBroken, OSError):
                answer_roll_call(theirs)
        finally:
            for descriptor in received.descriptors:
                os.close(descriptor)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        return Session(ours, deadline_s=deadline_s).run(SETS, np.random.default_rng(0))
    finally:
        ours.close()
        thread.join()
        theirs.close()


def write_output(received: wire.Received, count: int = SHAPE.count) -> None:
    """Write v as o, as far as `count` numbers."""
    inputs, output = received.descriptors
    values = map_inputs(inputs, 3 * SHAPE.count + SHAPE.heads)[2 * SHAPE.count : 3 * SHAPE.count]
    map_output(output, SHAPE.count)[:count] = values[:count]


def acknowledge(connection: socket.socket, received: wire.Received) -> None:
    wire.send(connection, {"nonce": received.message["nonce"]})


def answer_honestly(connection: socket.socket, received: wire.Received) -> None:
    write_output(received)
    acknowledge(connection, received)


def failure(peer: Peer, **options: Callable[[], float]) -> CandidateFailed:
    with pytest.raises(CandidateFailed) as caught:
        run_trial(peer, **options)
    return caught.value


def say(*messages: dict[str, Any]) -> None:
    """Wait for a worker that says this and is gone."""
    ours, theirs = wire.socket_pair()
    for message in messages:
        wire.send(theirs, message)
    theirs.close()
    with ours:
        Session(ours, deadline_s=lambda: 60.0).wait_ready()


def test_a_worker_answers_for_the_submission_once_it_has_started() -> None:
    gone = "the worker broke off: the peer closed the connection"
    with pytest.raises(WorkerNotStarted, match=f"^{gone}$"):
        say()
    with pytest.raises(CandidateFailed, match=f"^{gone}$"):
        say(wire.STARTED)
    with pytest.raises(CandidateFailed, match=r"^no such name$"):
        say(wire.STARTED, {"failed": "build", "reason": "no such name"})
    say(wire.STARTED, wire.READY)


def test_an_honest_trial() -> None:
    def honest(connection: socket.socket, received: wire.Received) -> None:
        assert received.message["operator"] == "chunk_quasar"
        assert Shape(**received.message["shape"]) == SHAPE
        time.sleep(0.05)
        write_output(received)
        acknowledge(connection, received)

    trial = run_trial(honest)
    assert torch.equal(trial.outputs[0], INPUTS.v)
    assert trial.seconds >= 0.05


def test_an_acknowledgement_before_the_last_number() -> None:
    def early(connection: socket.socket, received: wire.Received) -> None:
        write_output(received, SHAPE.count - 1)
        acknowledge(connection, received)

    error = failure(early)
    assert error.kind == "tampered"
    assert "1 of 384 numbers" in str(error)


def test_a_guessed_nonce() -> None:
    def guess(connection: socket.socket, received: wire.Received) -> None:
        write_output(received)
        wire.send(connection, {"nonce": "0" * 32})

    assert failure(guess).kind == "tampered"


@pytest.mark.parametrize("extra", [{"tokens_per_sec": 1e9}, {"failed": "build"}, {"ready": True}])
def test_an_acknowledgement_that_says_more(extra: dict[str, object]) -> None:
    def talk(connection: socket.socket, received: wire.Received) -> None:
        write_output(received)
        wire.send(connection, {"nonce": received.message["nonce"], **extra})

    assert failure(talk).kind == "tampered"


def test_a_second_message() -> None:
    def twice_at_once(connection: socket.socket, received: wire.Received) -> None:
        connection.setblocking(True)
        write_output(received)
        connection.send(json.dumps({"nonce": "x"}).encode())
        # The referee may have read the first by now, and left.
        with contextlib.suppress(wire.WireBroken):
            acknowledge(connection, received)

    assert failure(twice_at_once).kind == "tampered"
    ours, theirs = wire.socket_pair()
    with ours, theirs:
        theirs.send(b'{"nonce": "x"}')
        with pytest.raises(CandidateFailed, match="spoke before it was asked") as caught:
            Session(ours, deadline_s=lambda: 1.0).run(SETS, np.random.default_rng(0))
    assert caught.value.kind == "tampered"


@pytest.mark.parametrize("data", [b"done", b"[]", b"\xff", b"{" * 100, b'{"x": "' + b"y" * 70_000 + b'"}'])
def test_bytes_that_are_no_message(data: bytes) -> None:
    def garble(connection: socket.socket, received: wire.Received) -> None:
        connection.send(data)

    assert failure(garble).kind == "tampered"


def test_a_message_with_descriptors() -> None:
    def smuggle(connection: socket.socket, received: wire.Received) -> None:
        write_output(received)
        wire.send(connection, {"nonce": received.message["nonce"]}, (0,))

    assert failure(smuggle).kind == "tampered"


def test_the_end_of_the_worker_is_a_crash() -> None:
    def leave(connection: socket.socket, received: wire.Received) -> None:
        connection.close()

    def leave_after(connection: socket.socket, received: wire.Received) -> None:
        write_output(received)
        acknowledge(connection, received)
        connection.close()

    assert failure(leave).kind == "crash"
    # Noticed at once, or before the next trial: ending is no attack either way.
    with contextlib.suppress(CandidateFailed):
        run_trial(leave_after)
    ours, theirs = wire.socket_pair()
    with ours:
        theirs.close()
        with pytest.raises(CandidateFailed, match="ended between two trials") as caught:
            Session(ours, deadline_s=lambda: 1.0).run(SETS, np.random.default_rng(0))
    assert caught.value.kind == "crash"


def test_silence_ends_at_the_deadline() -> None:
    def hang(connection: socket.socket, received: wire.Received) -> None:
        time.sleep(0.3)

    # The roll call is answered first, however long it takes.
    left_s = iter([60.0])
    assert failure(hang, deadline_s=lambda: next(left_s, 0.1)).kind == "timeout"


@pytest.mark.parametrize("kind", ["build", "crash", "memory"])
def test_a_confessed_failure_keeps_its_reason(kind: str) -> None:
    def confess(connection: socket.socket, received: wire.Received) -> None:
        wire.send(connection, {"failed": kind, "reason": "x" * 10_000})

    error = failure(confess)
    assert error.kind == kind
    assert str(error) == "x" * 500


@pytest.mark.parametrize(
    "message", [{"failed": "passed", "reason": ""}, {"failed": "crash", "reason": 1}, {}]
)
def test_other_messages_are_tampering(message: dict[str, object]) -> None:
    def say(connection: socket.socket, received: wire.Received) -> None:
        wire.send(connection, message)

    assert failure(say).kind == "tampered"


def test_inputs_are_fresh_files_that_the_worker_cannot_change() -> None:
    seen: list[Inputs] = []

    def vandal(connection: socket.socket, received: wire.Received) -> None:
        with pytest.raises(PermissionError):
            os.pwrite(received.descriptors[0], b"\0" * 16, 0)
        write_output(received)
        acknowledge(connection, received)
        seen.append(INPUTS)

    # What earlier tests left in reference cycles is closed now, not in between.
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        run_trial(vandal)
    assert len(seen) == 3
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_room_to_map_an_output_is_a_matter_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def gather(*_: object) -> None:
        raise NoRoomToMap("no room")

    monkeypatch.setattr(buffers._HostOffer, "gather", gather)
    assert failure(answer_honestly).kind == "memory"


def test_the_worker_lets_go_before_the_referees_want_of_memory_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise the inputs would count as its own."""
    calls: list[str] = []
    ask = Session._call_roll

    def call_roll(session: Session, processor: int | None) -> None:
        calls.append("roll")
        ask(session, processor)

    def results(*_: object) -> list[torch.Tensor]:
        calls.append("results")
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(Session, "_call_roll", call_roll)
    monkeypatch.setattr(buffers._HostOffer, "results", results)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run_trial(answer_honestly)
    assert calls == ["roll", "results", "roll"]


@pytest.mark.parametrize(("count", "calls"), [(2, 1), (2, 2), (1, 2)])
def test_a_trial_on_a_cpu_is_one_call(count: int, calls: int) -> None:
    ours, theirs = wire.socket_pair()
    sets = InputSets(shape=SHAPE, count=count, draw=lambda number: INPUTS)
    with ours, theirs, pytest.raises(ValueError, match="a trial on a CPU has one of each"):
        Session(ours, deadline_s=lambda: 1.0).run(sets, np.random.default_rng(0), calls=calls)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [({"present": "0" * 32}, "tampered"), ({"nonce": "0" * 32}, "tampered"), (None, "crash")],
)
def test_a_roll_call_that_is_not_answered(answer: dict[str, str] | None, kind: str) -> None:
    ours, theirs = wire.socket_pair()

    def serve() -> None:
        wire.receive(theirs, timeout_s=60.0)
        if answer is None:
            theirs.close()
        else:
            wire.send(theirs, answer)

    thread = threading.Thread(target=serve)
    thread.start()
    with ours, pytest.raises(CandidateFailed) as caught:
        Session(ours, deadline_s=lambda: 60.0).run(SETS, np.random.default_rng(0))
    assert caught.value.kind == kind
    thread.join()
    theirs.close()
