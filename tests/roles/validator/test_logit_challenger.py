"""When miners are challenged, and what becomes of the outcome."""

import asyncio
import random
from datetime import timedelta

import pytest

from node.chain import AxonAddress
from protocol.errors import WorkerFailed
from protocol.events import LogitsChecked
from protocol.rules import LOGIT_PENDING_SECONDS
from protocol.verdicts import LogitOutcome, Status
from roles.validator.logit_challenger import PENDING_LONGEST_S
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
        self.validator.challenger._random = random.Random(7)
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
    waits = [await timed.next_check_s(10.0) for _ in range(20)]
    assert all(500.0 <= wait <= 1510.0 for wait in waits)
    assert len(set(waits)) > 10
    assert 800.0 < sum(waits) / len(waits) < 1200.0


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
        assert await timed.next_check_s(10.0) <= 1.5 * PENDING_LONGEST_S + 10
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
