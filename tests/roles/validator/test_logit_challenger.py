"""When miners are challenged, and what becomes of the outcome."""

import asyncio
from datetime import timedelta

import pytest

from node.chain import AxonAddress
from protocol.errors import WorkerFailed
from protocol.events import LogitsChecked
from protocol.rules import LOGIT_PENDING_SECONDS
from protocol.types import Hotkey
from protocol.verdicts import LogitOutcome, Status
from roles.validator.logit_challenger import CONFIRM_TRIES, LONGEST_S, PENDING_MEAN_S, RECENT_S
from roles.validator.logits import LogitResult
from tests.fakes.clock import FakeClock
from tests.roles.api.harness import Client
from tests.roles.miner.harness import report
from tests.roles.proxy import SwitchedProxy
from tests.roles.validator.harness import ScriptedVerifier, Validator, Wallet, result


async def checked(validator: Validator, count: int) -> list[LogitsChecked]:
    """Wait for that many checks."""

    async def condition() -> list[LogitsChecked] | None:
        events = validator.recorder.of(LogitsChecked)
        return events if len(events) >= count else None

    found: list[LogitsChecked] = await validator.until(condition)
    return found


async def sent(api: Client, count: int = 1) -> list[dict[str, object]]:
    """What the API shows of logit verifications."""
    shown = (await api.get("/verifications")).body
    return list(shown) if len(shown) >= count else []


async def test_miner_with_a_passed_kernel_is_challenged_at_once_at_its_axon(
    validator: Validator, api: Client
) -> None:
    await validator.open()
    await validator.chain.serve_axon(Wallet(validator.subnet.miner), "127.0.0.1", 8123)
    await validator.judge(1, validator.subnet.miner)
    await validator.judge(2, validator.subnet.rival, report(Status.CRASHED, None))
    validator.run("challenger")
    (event,) = await checked(validator, 1)
    assert event == LogitsChecked(hotkey=validator.subnet.miner.ss58_address, outcome=LogitOutcome.PASSED)
    assert validator.verifier.asked == [(event.hotkey, AxonAddress("127.0.0.1", 8123))]
    assert validator.store.logit_outcome(event.hotkey, validator.clock.now()) is LogitOutcome.PASSED
    (shown,) = await validator.until(lambda: sent(api))
    assert shown["miner_hotkey"] == event.hotkey
    assert shown["outcome"] == "passed"


async def test_check_outlives_an_api_outage_and_a_crash(
    validator: Validator, api: Client, proxy: SwitchedProxy
) -> None:
    proxy.cut_before["/record_verification"] = 10_000
    await validator.open()
    await validator.judge(1, validator.subnet.miner)
    validator.run("challenger")
    await checked(validator, 1)
    await validator.kill()
    assert await sent(api) == []

    proxy.cut_before.clear()
    await validator.start("challenger")
    await validator.until(lambda: sent(api))
    assert len(validator.verifier.asked) == 1


async def test_own_reference_at_fault_says_nothing_about_the_miner(validator: Validator) -> None:
    validator.verifier = ScriptedVerifier([WorkerFailed("the model does not load"), result()])
    validator.settings = validator.settings.model_copy(
        update={"validator": validator.settings.validator.model_copy(update={"logit_interval_s": 0.1})}
    )
    await validator.open()
    await validator.judge(1, validator.subnet.miner)
    validator.run("challenger")
    (event,) = (await checked(validator, 1))[:1]
    assert event.outcome is LogitOutcome.PASSED
    assert len(validator.verifier.asked) >= 2


async def test_hotkey_that_left_is_not_challenged(validator: Validator) -> None:
    await validator.open()
    await validator.judge(1, validator.subnet.stranger)
    await validator.judge(2, validator.subnet.miner)
    validator.run("challenger")
    await checked(validator, 1)
    assert [hotkey for hotkey, _ in validator.verifier.asked] == [validator.subnet.miner.ss58_address]


class Timed:
    """A challenger on a clock that the test turns, driven by hand."""

    def __init__(self, validator: Validator) -> None:
        self.validator = validator
        self.clock = FakeClock()
        validator.clock = self.clock

    async def open(self) -> None:
        """Open it, with one passed miner."""
        await self.validator.open()
        await self.validator.judge(1, self.validator.subnet.miner)
        self.validator.tasks.append(asyncio.create_task(self.validator.recorder.run()))

    async def look(self) -> bool:
        """Check whoever is due; True when somebody was."""
        challenger = self.validator.challenger
        due = challenger._due_hotkeys()
        for hotkey in due:
            await challenger._check(hotkey)
        return bool(due)

    async def next_check_s(self, step_s: float) -> float:
        """Turn the clock until the next check was made; the seconds that this took."""
        start = self.clock.monotonic()
        while True:
            await self.clock.advance(step_s)
            if await self.look():
                return self.clock.monotonic() - start


async def test_times_are_random_around_the_interval(validator: Validator) -> None:
    timed = Timed(validator)
    await timed.open()
    assert await timed.look()
    assert not await timed.look()
    waits = [await timed.next_check_s(10.0) for _ in range(60)]
    assert 700.0 < sum(waits) / len(waits) < 1400.0
    # A server that is switched off for a while after each check is caught.
    assert sum(wait < 250.0 for wait in waits) > 5
    assert max(waits) > 2000.0
    assert max(waits) <= LONGEST_S


async def test_unreachable_is_pending_tried_sooner_and_failed_after_six_hours(validator: Validator) -> None:
    validator.verifier = ScriptedVerifier([result(LogitOutcome.PENDING, "no answer within 60 s")])
    timed = Timed(validator)
    await timed.open()
    hotkey = validator.subnet.miner.ss58_address
    assert await timed.look()
    started = timed.clock.now()
    while timed.clock.now() - started < timedelta(seconds=LOGIT_PENDING_SECONDS):
        standing = validator.store.logit_standing(hotkey)
        assert standing is not None
        assert standing.outcome is LogitOutcome.PENDING
        assert standing.pending_since == started
        assert await timed.next_check_s(10.0) <= 10 * PENDING_MEAN_S
    standing = validator.store.logit_standing(hotkey)
    assert standing is not None
    assert standing.outcome is LogitOutcome.FAILED
    (unsent,) = await validator.store.unacknowledged_logit_checks()
    assert "no answer within 60 s" in unsent.reason
    assert unsent.outcome is LogitOutcome.FAILED

    validator.verifier.results = [result()]
    await timed.next_check_s(10.0)
    assert validator.store.logit_outcome(hotkey, timed.clock.now()) is LogitOutcome.PASSED


async def test_pass_after_pending_starts_the_six_hours_anew(validator: Validator) -> None:
    pending = result(LogitOutcome.PENDING)
    validator.verifier = ScriptedVerifier([pending, result(), pending])
    timed = Timed(validator)
    await timed.open()
    await timed.look()
    await timed.next_check_s(10.0)
    await timed.next_check_s(10.0)
    standing = validator.store.logit_standing(validator.subnet.miner.ss58_address)
    assert standing is not None
    assert standing.pending_since == timed.clock.now()
    assert standing.outcome_at(timed.clock.now()) is LogitOutcome.PASSED


@pytest.mark.parametrize(
    ("outcome", "is_due"), [(LogitOutcome.PASSED, False), (LogitOutcome.PENDING, True), (None, True)]
)
async def test_restart_checks_at_once_unless_passed_lately(
    validator: Validator, outcome: LogitOutcome | None, is_due: bool
) -> None:
    timed = Timed(validator)
    await timed.open()
    if outcome is not None:
        await validator.check(validator.subnet.miner, outcome)
    await validator.kill()
    await timed.open()
    assert await timed.look() is is_due


class Confirming:
    """A challenger asked to confirm one passed miner, on a clock that runs by itself while it waits."""

    def __init__(self, validator: Validator, *found: LogitResult | Exception) -> None:
        self.validator = validator
        self.hotkey = validator.subnet.miner.ss58_address
        validator.verifier = ScriptedVerifier(list(found))
        self.timed = Timed(validator)

    async def open(self) -> None:
        """Open it; the miner passed an hour ago."""
        await self.timed.open()
        await self.validator.check(self.validator.subnet.miner)
        await self.timed.clock.advance(3600.0)

    async def confirm(self) -> set[Hotkey]:
        """Ask, and let the time between its tries pass."""
        task = asyncio.create_task(self.validator.challenger.confirm({self.hotkey}))
        while not task.done():
            if self.timed.clock.sleepers:
                await self.timed.clock.advance(1.0)
            await asyncio.sleep(0.01)
        return task.result()

    @property
    def tries(self) -> int:
        """How often the miner was asked."""
        return len(self.validator.verifier.asked)


async def test_before_weights_a_miner_is_asked_unless_it_has_just_passed(validator: Validator) -> None:
    one = Confirming(validator, result())
    await one.open()
    assert await one.confirm() == set()
    assert one.tries == 1
    assert await one.confirm() == set()
    assert one.tries == 1
    await one.timed.clock.advance(RECENT_S)
    assert await one.confirm() == set()
    assert one.tries == 2


async def test_server_that_is_off_is_named_after_several_tries_and_stays_pending(
    validator: Validator,
) -> None:
    one = Confirming(validator, result(LogitOutcome.PENDING, "not reachable"))
    await one.open()
    assert await one.confirm() == {one.hotkey}
    assert one.tries == CONFIRM_TRIES
    now = one.timed.clock.now()
    assert validator.store.logit_outcome(one.hotkey, now) is LogitOutcome.PASSED, "a pass lasts a day"
    assert not validator.store.has_answered(one.hotkey)


async def test_server_that_restarts_meanwhile_is_not_named(validator: Validator) -> None:
    one = Confirming(validator, result(LogitOutcome.PENDING, "not reachable"), result())
    await one.open()
    assert await one.confirm() == set()
    assert one.tries == 2


async def test_other_model_before_weights_fails_at_once(validator: Validator) -> None:
    one = Confirming(validator, result(LogitOutcome.FAILED, "other weights"))
    await one.open()
    assert await one.confirm() == set()
    assert one.tries == 1
    assert validator.store.logit_outcome(one.hotkey, one.timed.clock.now()) is LogitOutcome.FAILED


async def test_own_fault_before_weights_counts_for_the_miner(validator: Validator) -> None:
    one = Confirming(validator, WorkerFailed("the model does not load"))
    await one.open()
    assert await one.confirm() == set()
    assert validator.store.has_answered(one.hotkey)


async def test_a_clock_that_was_wrong_for_a_moment_puts_off_nobody(validator: Validator) -> None:
    timed = Timed(validator)
    await timed.open()
    year = timedelta(days=365)
    timed.clock._start += year
    validator.verifier.results = [result(LogitOutcome.PENDING)]
    assert await timed.look()
    timed.clock._start -= year
    validator.verifier.results = [result()]
    assert await timed.next_check_s(60.0) <= PENDING_MEAN_S * 20
    assert len(validator.store.entries(timed.clock.now())) == 1
