"""Ports of this machine."""

import secrets
import socket
from pathlib import Path

LOWEST = 20_000
"""Ray gives its workers ports below."""

_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on at this moment, each time another.

    It lies below those that the kernel gives to whoever asks for any port: none of them can take it before
    the process that it is meant for.
    """
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first < LOWEST + 1000:
        # On this machine it gives out nearly all: where they begin elsewhere is as good as any.
        first = 32_768
    while True:
        # Not from `random`, which Hypothesis seeds alike in every process.
        port = LOWEST + secrets.randbelow(first - LOWEST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
