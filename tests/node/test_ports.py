"""Ports that stay free until the process that they are meant for takes them."""

import socket
from pathlib import Path

import pytest

from node import ports
from node.ports import free_port


def test_ports_are_different_and_no_bind_to_any_port_gets_them() -> None:
    found = {free_port() for _ in range(50)}
    assert len(found) == 50
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(found) < max(first, 32_768)
    assert min(found) >= 20_000


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_port(), free_port()
    drawn = [taken - 20_000, free - 20_000]
    monkeypatch.setattr(ports, "_given", set())
    monkeypatch.setattr("secrets.randbelow", lambda _: drawn.pop(0))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", taken))
        listener.listen()
        assert free_port() == free


def test_where_the_kernel_gives_out_nearly_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = tmp_path / "range"
    narrow.write_text("1024\t65535\n")
    monkeypatch.setattr(ports, "_RANGE", narrow)
    assert 20_000 <= free_port() < 32_768
