"""Messages between referee and worker: JSON datagrams with file descriptors over a Unix socket pair."""

import array
import json
import os
import select
import socket
import time
from dataclasses import dataclass
from typing import Any, Final

MAX_MESSAGE_BYTES: Final = 65_536
SPIN_S: Final = 0.05
"""For so long both sides stay awake on a GPU: the calls of a trial take a hundredth of a second. On a CPU
that would take from the worker what it computes with."""
STARTED: Final = {"started": True}
"""A worker's first message, before it imports the submission."""
READY: Final = {"ready": True}
"""Its second: the submission is imported."""
_FD_BYTES: Final = array.array("i").itemsize


class WireBroken(Exception):
    """The peer closed the connection, was silent too long, or sent something that is no message."""


class WireSilent(WireBroken):
    """The peer sent nothing before the deadline."""


class WireGarbled(WireBroken):
    """The peer sent something that is no message."""


@dataclass(frozen=True, slots=True)
class Received:
    """One message and the descriptors that came with it (the receiver closes them)."""

    message: dict[str, Any]
    descriptors: list[int]


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two ends that keep message boundaries."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one message.

    Raises:
        WireBroken: the peer is gone.
    """
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    try:
        connection.sendmsg([json.dumps(message).encode()], ancillary)
    except OSError as error:
        # Gone, or it does not take what is sent to it.
        raise WireBroken(f"the peer is gone: {error}") from error


def receive(
    connection: socket.socket,
    *,
    timeout_s: float | None = None,
    max_descriptors: int = 0,
    spin_s: float = 0.0,
) -> Received:
    """Receive one message.

    For the first `spin_s` seconds the caller stays awake: waking up takes time, and never the same.

    Raises:
        WireSilent: nothing came in time. WireGarbled: it is no JSON object, or too long.
        WireBroken: the peer is gone.
    """
    if spin_s > 0.0:
        _stay_awake(connection, spin_s if timeout_s is None else min(spin_s, timeout_s))
    connection.settimeout(timeout_s)
    try:
        data, ancillary, flags, _ = connection.recvmsg(
            MAX_MESSAGE_BYTES, socket.CMSG_SPACE(max_descriptors * _FD_BYTES) if max_descriptors else 0
        )
    except TimeoutError as error:
        raise WireSilent(f"no message within {timeout_s} s") from error
    except ConnectionError as error:
        raise WireBroken(f"the peer is gone: {error}") from error
    descriptors = _descriptors(ancillary)
    try:
        if not data:
            raise WireBroken("the peer closed the connection")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise WireGarbled("a message was longer than allowed")
        return Received(_parse(data), descriptors)
    except WireBroken:
        for descriptor in descriptors:
            os.close(descriptor)
        raise


def _stay_awake(connection: socket.socket, seconds: float) -> None:
    """Ask again and again until there is something to be read, the peer is gone, or the time is over."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    ends = time.perf_counter() + seconds
    while not poll.poll(0) and time.perf_counter() < ends:
        pass


def _parse(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireGarbled(f"not a JSON message: {error}") from error
    if not isinstance(message, dict):
        raise WireGarbled(f"not a JSON object but {type(message).__name__}")
    return message


def has_left(connection: socket.socket) -> bool:
    """True when the peer closed the connection and left nothing to be read."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    is_hung_up = any(events & select.POLLHUP for _, events in poll.poll(0))
    connection.setblocking(False)
    try:
        return is_hung_up and not connection.recv(1, socket.MSG_PEEK)
    except ConnectionError:
        return True
    except BlockingIOError:
        return False


def is_quiet(connection: socket.socket) -> bool:
    """True when nothing waits to be read."""
    connection.setblocking(False)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    return False


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return list(found)
