"""One answer for everybody: as fresh as promised, and computed no more often than that takes."""

import asyncio

import pytest

from roles.api.database import DatabaseUnavailable
from roles.api.remembered import MAX_AGE_S, Remembered
from tests.fakes.clock import FakeClock


class Source:
    """What is shown: how often it was written to. Each computation waits for `gate`."""

    def __init__(self) -> None:
        self.revision = 0
        self.computed = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.clock = FakeClock()
        self.remembered = Remembered(self.compute, lambda: self.revision, self.clock)

    async def compute(self) -> int:
        """The revision at the beginning of the computation."""
        self.computed += 1
        seen = self.revision
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return seen


@pytest.fixture
async def source() -> Source:
    """Computes at once."""
    source = Source()
    source.gate.set()
    return source


async def test_is_kept_until_a_write(source: Source) -> None:
    assert [await source.remembered.get() for _ in range(3)] == [0, 0, 0]
    assert source.computed == 1
    source.revision += 1
    assert not source.remembered.is_fresh()
    assert await source.remembered.get() == 1
    assert source.remembered.is_fresh()


async def test_grows_old(source: Source) -> None:
    await source.remembered.get()
    await source.clock.advance(MAX_AGE_S)
    await source.remembered.get()
    assert source.computed == 1
    await source.clock.advance(0.01)
    await source.remembered.get()
    assert source.computed == 2


async def test_those_who_wait_share_and_later_writes_are_not_theirs(source: Source) -> None:
    """Writes that never stop must not make each one who waits compute for himself."""
    source.gate.clear()
    asking = []
    for _ in range(20):
        asking.append(asyncio.create_task(source.remembered.get()))
        await asyncio.sleep(0)
        source.revision += 1
    source.gate.set()
    await asking[0]
    while source.computed < 2:
        await asyncio.sleep(0.001)
        source.revision += 1
    answers = await asyncio.gather(*asking)
    assert source.computed == 2
    assert all(answer >= number for number, answer in enumerate(answers)), "nobody misses a write before"


async def test_a_caller_who_leaves_takes_the_answer_from_nobody(source: Source) -> None:
    source.gate.clear()
    first, second = (asyncio.create_task(source.remembered.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    source.gate.set()
    assert await second == 0
    assert first.cancelled()
    assert source.computed == 1


async def test_what_failed_is_tried_again(source: Source) -> None:
    source.error = DatabaseUnavailable("away")
    answers = await asyncio.gather(*(source.remembered.get() for _ in range(3)), return_exceptions=True)
    assert answers == [source.error] * 3
    assert source.computed == 1
    source.error = None
    assert await source.remembered.get() == 0


async def test_renewed_begins_after_the_call(source: Source) -> None:
    await source.remembered.get()
    source.gate.clear()
    before = asyncio.create_task(source.remembered.renew())
    while source.computed < 2:
        await asyncio.sleep(0.001)
    after = [asyncio.create_task(source.remembered.renew()) for _ in range(5)]
    await asyncio.sleep(0)
    source.gate.set()
    await before
    await asyncio.gather(*after)
    assert source.computed == 3
