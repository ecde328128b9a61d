"""Sliding windows and the caller's address."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from node.settings_model import Settings
from roles.api.database import Database, DatabaseUnavailable
from roles.api.limits import (
    Limits,
    MemoryWindows,
    SharedWindows,
    Windows,
    parse_networks,
    slide,
    without_future,
)
from tests.fakes.clock import FakeClock
from tests.roles.api.harness import url_of


@pytest.fixture
def clock() -> FakeClock:
    """Time that a test turns."""
    return FakeClock()


@pytest.fixture(params=["memory", "shared"])
async def windows(
    request: pytest.FixtureRequest, settings: Settings, clock: FakeClock
) -> AsyncIterator[Windows]:
    """Windows of one process, and those that replicas share."""
    if request.param == "memory":
        yield MemoryWindows(clock)
        return
    database = Database(url_of(settings))
    yield SharedWindows(database, clock)
    await database.close()


class CountingDatabase(Database):
    """Counts transactions, waits for `before` each of them, and refuses them with `error`."""

    writes = 0
    error: Exception | None = None
    before: Callable[[], Awaitable[None]] | None = None

    async def write(self, work: Any, **options: Any) -> Any:
        """Write, unless told otherwise."""
        self.writes += 1
        if self.before is not None:
            await self.before()
        if self.error is not None:
            raise self.error
        return await super().write(work, **options)


async def test_window_slides(windows: Windows, clock: FakeClock) -> None:
    assert await windows.take("a", 2) is None
    await clock.advance(30)
    assert await windows.take("a", 2) is None
    assert await windows.take("a", 2) == 30.0
    assert await windows.take("b", 2) is None
    await clock.advance(30)
    assert await windows.take("a", 2) is None
    assert await windows.take("a", 2) == 30.0


async def test_window_of_many_at_once(windows: Windows) -> None:
    waits = await asyncio.gather(*(windows.take("a", 3) for _ in range(10)))
    assert sum(wait is None for wait in waits) == 3


async def test_those_who_ask_at_once_share_a_transaction(settings: Settings, clock: FakeClock) -> None:
    """As many hotkeys behind one address: nobody queues for its window behind all the others."""
    database = CountingDatabase(url_of(settings))
    windows = SharedWindows(database, clock)
    waits = await asyncio.gather(*(windows.take(key, 20) for n in range(30) for key in ("address", f"{n}")))
    assert sum(wait is not None for wait in waits) == 10, "only the address has acted more than 20 times"
    assert database.writes == 1
    await database.close()


async def test_a_refused_transaction_is_everybodys_error(settings: Settings, clock: FakeClock) -> None:
    database = CountingDatabase(url_of(settings))
    windows = SharedWindows(database, clock)
    database.error = DatabaseUnavailable("away")
    refused = await asyncio.gather(*(windows.take(key, 1) for key in "aab"), return_exceptions=True)
    assert refused == [database.error] * 3
    database.error = None
    assert await windows.take("a", 1) is None
    await database.close()


def test_moments_in_the_future_do_not_count() -> None:
    """The clock was set back: nobody waits for the time that it has lost."""
    assert without_future([5000.0, 5001.0], 1000.0) == deque()


def test_another_replicas_clock_may_be_ahead() -> None:
    moments = without_future([1000.5], 1000.0)
    assert slide(moments, 1000.0, 1) == 60.5
    assert moments == deque([1000.5])


async def test_what_others_did_while_it_waited_counts(settings: Settings, clock: FakeClock) -> None:
    """An act happens when its turn has come: what came before is not in the future."""
    database, others = CountingDatabase(url_of(settings)), Database(url_of(settings))

    async def another_replica_acts() -> None:
        await clock.advance(10)
        assert await SharedWindows(others, clock).take("a", 1) is None

    database.before = another_replica_acts
    assert await SharedWindows(database, clock).take("a", 1) == 60.0
    await database.close()
    await others.close()


async def test_window_forgets_idle_keys() -> None:
    clock = FakeClock()
    windows = MemoryWindows(clock)
    for number in range(10):
        await windows.take(str(number), 1)
    await clock.advance(61)
    await windows.take("one more", 1)
    assert len(windows._taken) == 1


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
    limits = Limits(
        MemoryWindows(FakeClock()),
        per_hotkey=1,
        per_address=1,
        trusted_proxies=parse_networks(("10.0.0.0/8",)),
    )
    assert limits.address_of(request_from(peer, *forwarded)) == address
