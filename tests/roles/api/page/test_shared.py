"""Answers that everybody shares: made once, kept for a moment, never too many."""

import asyncio

import pytest

from roles.api.page.shared import SharedAnswers
from tests.fakes.clock import FakeClock


class Maker:
    """Makes numbered answers, and waits or fails when told to."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.error: Exception | None = None

    async def __call__(self, key: str) -> str:
        self.made.append(key)
        await self.may_go.wait()
        if self.error is not None:
            raise self.error
        return f"{key}{len(self.made)}"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def make() -> Maker:
    return Maker()


@pytest.fixture
async def answers(make: Maker, clock: FakeClock) -> SharedAnswers[str, str]:
    return SharedAnswers(make, clock, fresh_s=1.0, stale_s=10.0, size=2)


async def test_many_who_ask_at_once_cost_one(answers: SharedAnswers[str, str], make: Maker) -> None:
    assert set(await asyncio.gather(*(answers.get("a") for _ in range(100)))) == {"a1"}
    assert await answers.get("a") == "a1"
    assert make.made == ["a"]


async def test_old_answer_is_given_while_a_new_one_is_made(
    answers: SharedAnswers[str, str], make: Maker, clock: FakeClock
) -> None:
    await answers.get("a")
    await clock.advance(5.0)
    assert await answers.get("a") == "a1"
    await clock.advance(0.0)
    assert await answers.get("a") == "a2"


async def test_very_old_answer_is_not_given(answers: SharedAnswers[str, str], clock: FakeClock) -> None:
    await answers.get("a")
    await clock.advance(10.1)
    assert await answers.get("a") == "a2"


async def test_least_used_answer_makes_room(answers: SharedAnswers[str, str], make: Maker) -> None:
    for key in ("a", "b", "a", "c", "a", "b"):
        await answers.get(key)
    assert make.made == ["a", "b", "c", "b"]


async def test_error_reaches_those_who_wait_and_is_not_kept(
    answers: SharedAnswers[str, str], make: Maker
) -> None:
    make.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await answers.get("a")
    make.error = None
    assert await answers.get("a") == "a2"


async def test_failed_renewal_keeps_the_old_answer_for_a_while(
    answers: SharedAnswers[str, str], make: Maker, clock: FakeClock
) -> None:
    await answers.get("a")
    make.error = ValueError("no")
    await clock.advance(5.0)
    for _ in range(3):
        assert await answers.get("a") == "a1"
        await clock.advance(0.0)
    await clock.advance(6.0)
    with pytest.raises(ValueError, match="no"):
        await answers.get("a")


async def test_reader_who_leaves_does_not_take_the_answer_along(
    answers: SharedAnswers[str, str], make: Maker
) -> None:
    make.may_go.clear()
    impatient = asyncio.create_task(answers.get("a"))
    patient = asyncio.create_task(answers.get("a"))
    await asyncio.sleep(0)
    impatient.cancel()
    make.may_go.set()
    assert await patient == "a1"
    assert make.made == ["a"]


async def test_refresh_makes_only_what_is_not_fresh(
    answers: SharedAnswers[str, str], make: Maker, clock: FakeClock
) -> None:
    answers.refresh("a")
    assert await answers.get("a") == "a1"
    answers.refresh("a")
    await clock.advance(1.1)
    assert make.made == ["a"]
    answers.refresh("a")
    await clock.advance(0.0)
    assert make.made == ["a", "a"]


async def test_close_ends_what_is_being_made(answers: SharedAnswers[str, str], make: Maker) -> None:
    make.may_go.clear()
    waiting = asyncio.create_task(answers.get("a"))
    await asyncio.sleep(0)
    await answers.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
