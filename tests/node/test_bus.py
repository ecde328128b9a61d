"""The bus: order, bounds, latest-only state, and errors where facts would get lost."""

import asyncio

import pytest

from node.bus import Bus
from protocol.errors import BusError
from protocol.events import BlockAdvanced, CommitmentRecorded, Event
from protocol.types import BlockHeight, SubmissionId


def recorded(number: int) -> CommitmentRecorded:
    return CommitmentRecorded(submission_id=SubmissionId(number), reveal_block=BlockHeight(number + 100))


def advanced(height: int) -> BlockAdvanced:
    return BlockAdvanced(height=BlockHeight(height), previous=None)


async def test_work_events_arrive_in_order_at_every_subscriber() -> None:
    bus = Bus()
    readers = [bus.subscribe(CommitmentRecorded), bus.subscribe(CommitmentRecorded)]
    for number in range(10):
        await bus.publish(recorded(number))
    for reader in readers:
        assert [await anext(reader) for _ in range(10)] == [recorded(number) for number in range(10)]


async def test_only_the_latest_state_waits_and_it_keeps_its_place() -> None:
    bus = Bus()
    reader = bus.subscribe(BlockAdvanced, CommitmentRecorded, capacity=1)
    await bus.publish(advanced(1))
    await bus.publish(recorded(1))
    for height in range(2, 1000):
        await bus.publish(advanced(height))
    assert len(reader) == 2
    assert await anext(reader) == advanced(999)
    assert await anext(reader) == recorded(1)


async def test_publisher_waits_for_room_and_goes_on_when_there_is() -> None:
    bus = Bus(patience_s=20)
    reader = bus.subscribe(CommitmentRecorded, capacity=2)
    published: list[int] = []

    async def publish() -> None:
        for number in range(6):
            await bus.publish(recorded(number))
            published.append(number)

    publisher = asyncio.create_task(publish())
    for _ in range(10):
        await asyncio.sleep(0)
    assert published == [0, 1]
    seen = [(await anext(reader)).submission_id for _ in range(6)]
    await publisher
    assert seen == list(range(6))


async def test_stuck_reader_exhausts_patience() -> None:
    bus = Bus(patience_s=0.02)
    bus.subscribe(CommitmentRecorded, capacity=1)
    await bus.publish(recorded(1))
    with pytest.raises(BusError, match=r"CommitmentRecorded, 1 of 1 waiting.*took no .* for 0.02 s"):
        await bus.publish(recorded(2))


async def test_cancelled_publisher_leaves_the_queue_usable() -> None:
    bus = Bus()
    reader = bus.subscribe(CommitmentRecorded, capacity=1)
    await bus.publish(recorded(1))
    blocked = asyncio.create_task(bus.publish(recorded(2)))
    await asyncio.sleep(0)
    blocked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await blocked
    assert await anext(reader) == recorded(1)
    await bus.publish(recorded(3))
    assert await anext(reader) == recorded(3)


async def test_reader_sleeps_until_something_comes() -> None:
    bus = Bus()
    reader = bus.subscribe(BlockAdvanced)
    seen: list[int] = []

    async def read() -> None:
        async for event in reader:
            seen.append(event.height)

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    await bus.publish(advanced(7))
    await asyncio.sleep(0)
    await bus.publish(advanced(8))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [7, 8]


@pytest.mark.parametrize("event", [recorded(1), advanced(1)])
async def test_event_without_subscriber_is_an_error(event: Event) -> None:
    with pytest.raises(BusError, match=f"nobody subscribed to {type(event).__name__}"):
        await Bus().publish(event)


async def test_late_subscription_is_an_error() -> None:
    bus = Bus()
    bus.subscribe(BlockAdvanced)
    await bus.publish(advanced(1))
    with pytest.raises(BusError, match="subscribe in the constructor"):
        bus.subscribe(CommitmentRecorded)


async def test_empty_subscription_is_an_error() -> None:
    with pytest.raises(BusError, match="at least one event type"):
        Bus().subscribe()
    with pytest.raises(BusError, match="not 0"):
        Bus().subscribe(BlockAdvanced, capacity=0)
