"""When a validator takes no work because it fails by itself."""

from protocol.verdicts import Status
from roles.validator.pause import LONGEST_S, Pause
from tests.fakes.clock import FakeClock


async def length_of(pause: Pause, clock: FakeClock) -> float:
    """Seconds until work is taken again."""
    seconds = 0.0
    while pause.is_on():
        await clock.advance(1.0)
        seconds += 1.0
    return seconds


async def test_pauses_double_up_to_half_an_hour_until_something_is_judged() -> None:
    clock = FakeClock()
    pause = Pause(clock, first_s=60.0)
    assert not pause.is_on()
    for expected_s in (0.0, 60.0, 120.0, 240.0, 480.0, 960.0, LONGEST_S, LONGEST_S):
        pause.note(Status.INFRASTRUCTURE)
        assert await length_of(pause, clock) == expected_s
    pause.note(Status.CRASHED)
    assert not pause.is_on()
    for expected_s in (0.0, 60.0):
        pause.note(Status.INFRASTRUCTURE)
        assert await length_of(pause, clock) == expected_s


async def test_single_failures_among_others_take_nobodys_time() -> None:
    pause = Pause(FakeClock(), first_s=60.0)
    for _ in range(3):
        pause.note(Status.INFRASTRUCTURE)
        pause.note(Status.PASSED)
        assert not pause.is_on()
