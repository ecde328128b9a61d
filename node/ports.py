"""Ports of this machine."""

import errno
import secrets
import socket
from pathlib import Path
from typing import Final

_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST: Final = 20_000
"""Ray gives its workers ports below."""
_FEWEST: Final = 1000

_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody listens on at this moment, each time another.

    It lies below those that the kernel gives to whoever asks for any port: none of them can take it before
    the process that it is meant for.

    Raises:
        OSError: this machine has no address 127.0.0.1.
    """
    first = int(_RANGE.read_text().split()[0])
    if first < _LOWEST + _FEWEST:
        # On this machine it gives out nearly all: where they begin elsewhere is as good as any.
        first = 32_768
    while True:
        # Not from `random`, which tests seed alike in every process.
        port = _LOWEST + secrets.randbelow(first - _LOWEST)
        if port not in _given and _is_free(port):
            _given.add(port)
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True
