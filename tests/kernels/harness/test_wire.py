"""Messages between referee and worker, with a peer that lies."""

import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernels.harness import wire


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = wire.socket_pair()
    with ours, theirs:
        yield ours, theirs


def test_message_and_descriptors_arrive(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    reader, writer = os.pipe()
    wire.send(ours, {"nonce": "x"}, (writer,))
    os.close(writer)
    received = wire.receive(theirs, timeout_s=1.0, max_descriptors=2)
    assert received.message == {"nonce": "x"}
    (descriptor,) = received.descriptors
    os.write(descriptor, b"hello")
    os.close(descriptor)
    assert os.read(reader, 16) == b"hello"
    os.close(reader)


def test_one_that_stays_awake_hears_the_same(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    later = threading.Timer(0.05, wire.send, (ours, {"nonce": "x"}))
    later.start()
    assert wire.receive(theirs, timeout_s=10.0, spin_s=10.0).message == {"nonce": "x"}
    later.join()
    # Longer than the deadline nobody stays awake, and nobody sleeps through the rest of it.
    with pytest.raises(wire.WireSilent):
        wire.receive(theirs, timeout_s=0.01, spin_s=10.0)
    later = threading.Timer(0.05, wire.send, (ours, {"nonce": "y"}))
    later.start()
    assert wire.receive(theirs, timeout_s=10.0, spin_s=0.001).message == {"nonce": "y"}
    later.join()
    ours.close()
    with pytest.raises(wire.WireBroken):
        wire.receive(theirs, timeout_s=10.0, spin_s=10.0)


@pytest.mark.parametrize("data", [b"not json", b"[1]", b'"x"', b"\xff\xfe", b"[" * 5000])
def test_what_is_no_message_breaks_the_wire(data: bytes, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(data)
    with pytest.raises(wire.WireBroken):
        wire.receive(ours, timeout_s=1.0)


def test_a_message_that_is_too_long(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.send(b'{"x": "' + b"y" * (wire.MAX_MESSAGE_BYTES + 10) + b'"}')
    with pytest.raises(wire.WireBroken, match="longer"):
        wire.receive(ours, timeout_s=1.0)


def test_descriptors_that_nobody_asked_for_are_not_taken(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    # What earlier tests left in reference cycles is closed now, not in between.
    gc.collect()
    before = {path.name for path in Path("/proc/self/fd").iterdir()}
    wire.send(theirs, {"ready": True}, (0, 1, 2))
    with pytest.raises(wire.WireBroken):
        wire.receive(ours, timeout_s=1.0)
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == before


def test_silence_and_departure(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with pytest.raises(wire.WireSilent):
        wire.receive(ours, timeout_s=0.05)
    assert wire.is_quiet(ours)
    theirs.send(b"{}")
    assert not wire.is_quiet(ours)
    assert wire.receive(ours, timeout_s=1.0).message == {}
    theirs.close()
    with pytest.raises(wire.WireBroken):
        wire.receive(ours, timeout_s=1.0)
    with pytest.raises(wire.WireBroken):
        wire.send(ours, {})
