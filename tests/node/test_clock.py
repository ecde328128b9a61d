"""The system's clock, and the one that tests turn by hand."""

import asyncio
from datetime import UTC, timedelta

from node.clock import Clock, SystemClock
from tests.fakes.clock import START, FakeClock


async def test_system_clock_is_aware_and_moves() -> None:
    clock: Clock = SystemClock()
    assert clock.now().tzinfo is UTC
    before = clock.monotonic()
    await clock.sleep(-1)
    await clock.sleep(0.01)
    assert clock.monotonic() > before


async def test_fake_clock_wakes_sleepers_in_the_order_of_their_times() -> None:
    clock = FakeClock()
    woken: list[tuple[str, float]] = []

    async def sleep(name: str, *durations: float) -> None:
        for duration in durations:
            await clock.sleep(duration)
            woken.append((name, clock.monotonic()))

    tasks = [asyncio.create_task(sleep("a", 3, 3)), asyncio.create_task(sleep("b", 1, 1, 1))]
    await clock.advance(3)
    assert woken == [("b", 1.0), ("b", 2.0), ("a", 3.0), ("b", 3.0)]
    assert clock.sleepers == 1
    await clock.advance(3)
    await asyncio.gather(*tasks)
    assert woken[-1] == ("a", 6.0)
    assert clock.now() == START + timedelta(seconds=6)
