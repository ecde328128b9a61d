"""Sliding windows and the caller's address."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from roles.api.limits import Limits, SlidingWindow
from tests.fakes.clock import FakeClock


async def test_window_slides() -> None:
    clock = FakeClock()
    window = SlidingWindow(2, clock)
    assert window.take("a") is None
    await clock.advance(30)
    assert window.take("a") is None
    assert window.take("a") == 30.0
    assert window.take("b") is None
    await clock.advance(30)
    assert window.take("a") is None
    assert window.take("a") == 30.0


async def test_window_forgets_idle_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roles.api.limits.MAX_KEYS", 10)
    clock = FakeClock()
    window = SlidingWindow(1, clock)
    for number in range(10):
        window.take(str(number))
    await clock.advance(61)
    window.take("one more")
    assert len(window._taken) == 1


def request_from(peer: str, *forwarded: str) -> web.Request:
    """A request as it arrives from a peer, with X-Forwarded-For lines."""
    headers = [("X-Forwarded-For", line) for line in forwarded]

    class Transport:
        def get_extra_info(self, name: str, default: object = None) -> object:
            return (peer, 1234) if name == "peername" else default

    return make_mocked_request("POST", "/", headers=CIMultiDict(headers), transport=Transport())


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.5", (), "203.0.113.5"),
        ("203.0.113.5", ("198.51.100.1",), "203.0.113.5"),
        ("10.0.0.1", ("198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("6.6.6.6, 198.51.100.1",), "198.51.100.1"),
        ("10.0.0.1", ("6.6.6.6", "198.51.100.1, 10.0.0.2"), "198.51.100.1"),
        ("10.0.0.1", (), "10.0.0.1"),
        ("10.0.0.1", ("garbage",), "unknown"),
        ("2001:db8:1:2:3:4:5:6", (), "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.5", (), "203.0.113.5"),
    ],
)
async def test_address_of_a_caller(peer: str, forwarded: tuple[str, ...], address: str) -> None:
    limits = Limits(FakeClock(), per_hotkey=1, per_address=1, trusted_proxies=("10.0.0.0/8",))
    assert limits.address_of(request_from(peer, *forwarded)) == address
