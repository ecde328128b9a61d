"""Lease, judge, keep, tell: with a real API, and an API that comes and goes."""

import asyncio
from typing import Any

import pytest
from aiohttp import web

from protocol.events import KernelJudged
from protocol.messages import GitSource
from protocol.verdicts import LeadOutcome, Status
from roles.validator.evaluation_loop import RECHECK_S
from tests.fakes.clock import FakeClock
from tests.roles.api.harness import Client, Code, key
from tests.roles.miner.harness import ScriptedReferee, comparison_report, report
from tests.roles.proxy import SwitchedProxy
from tests.roles.validator.harness import Validator


async def verdicts_of(api: Client, number: int) -> list[dict[str, Any]]:
    """What the API has about a submission."""
    return list((await api.get(f"/submissions/{number}")).body["verdicts"])


async def until_judged(validator: Validator, api: Client, number: int) -> dict[str, Any]:
    """Wait until the API has a verdict; returns the first one."""
    found = await validator.until(lambda: verdicts_of(api, number))
    return dict(found[0])


async def test_submission_is_judged_stored_and_told(validator: Validator, api: Client) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())
    validator.referee = ScriptedReferee([report(fingerprint="f")])
    await validator.start("loop")
    verdict = await until_judged(validator, api, submitted.submission_id)
    assert verdict["status"] == "passed"
    assert verdict["validator_hotkey"] == validator.api.hotkey
    assert verdict["evidence"]["reason"] == "scripted passed"
    (asked,) = validator.referee.asked
    assert isinstance(asked["source"], GitSource)
    assert asked["source"].commit_hash == Code().commit_hash
    assert asked["source"].allow_file
    assert asked["claim"] == 1000.0
    assert asked["target"] == submitted.target_sequence_length
    (event,) = validator.recorder.of(KernelJudged)
    assert (event.submission_id, event.status) == (submitted.submission_id, Status.PASSED)
    assert event.hotkey == validator.subnet.miner.ss58_address
    assert validator.store.passed_hotkeys() == {event.hotkey}
    await validator.until(lambda: _all_acknowledged(validator))
    assert validator.metrics.evaluations.labels("passed", "nobody")._value.get() == 1


async def _all_acknowledged(validator: Validator) -> bool:
    return await validator.store.unacknowledged_verdicts() == []


async def test_copy_is_judged_with_the_fingerprint_of_the_original(validator: Validator, api: Client) -> None:
    first = await api.submit(validator.subnet.miner, Code("original"))
    await api.submit(validator.subnet.rival, Code("copy"))
    validator.referee = ScriptedReferee([report(fingerprint="f"), report(Status.DUPLICATE, None)])
    await validator.start("loop")

    async def both() -> bool:
        return len(validator.referee.asked) == 2

    await validator.until(both)
    assert validator.referee.asked[0]["known"] == {}
    assert validator.referee.asked[1]["known"] == {"f": first.submission_id}


async def test_verdict_is_kept_through_a_crash_and_sent_by_the_next_process(
    validator: Validator, api: Client, proxy: SwitchedProxy
) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())
    path = f"/evaluations/{submitted.submission_id}/verdict"
    proxy.cut_before[path] = 10_000
    await validator.start("loop")
    await validator.until(validator_has_verdict(validator))
    await validator.kill()
    assert await verdicts_of(api, submitted.submission_id) == []

    proxy.cut_before.clear()
    await validator.start("loop")
    verdict = await until_judged(validator, api, submitted.submission_id)
    assert verdict["status"] == "passed"
    await validator.until(lambda: _all_acknowledged(validator))
    assert len(validator.referee.asked) == 1
    assert proxy.accepted(path) == 1


def validator_has_verdict(validator: Validator) -> Any:
    """A condition: a verdict waits in the store."""

    async def condition() -> bool:
        return bool(await validator.store.unacknowledged_verdicts())

    return condition


async def test_lost_answer_to_a_verdict_is_no_second_verdict(
    validator: Validator, api: Client, proxy: SwitchedProxy
) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())
    proxy.cut_after[f"/evaluations/{submitted.submission_id}/verdict"] = 1
    await validator.start("loop")
    await validator.until(lambda: _all_acknowledged_after(validator, 1))
    assert len(await verdicts_of(api, submitted.submission_id)) == 1


async def _all_acknowledged_after(validator: Validator, count: int) -> bool:
    records = await validator.journal.list("verdict")
    return len(records) == count and all(record.state == "acknowledged" for record in records)


async def test_lease_is_kept_alive_while_the_referee_works(
    validator: Validator, api_settings: Any, subnet: Any, api: Client, proxy: SwitchedProxy
) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())
    validator.referee.hold = asyncio.Event()
    await validator.open()
    # The API asks for a heartbeat every 20 s; here time for it comes at once.
    validator.loop._clock = _HastyClock()
    validator.run("loop")
    path = f"/evaluations/{submitted.submission_id}/heartbeat"

    async def beating() -> bool:
        return proxy.accepted(path) >= 3

    await validator.until(beating)
    proxy.cut_before[path] = 1
    validator.referee.hold.set()
    verdict = await until_judged(validator, api, submitted.submission_id)
    assert verdict["status"] == "passed"


class _HastyClock:
    """A clock whose sleeps are short."""

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, 0.02))


async def test_lost_lease_stops_the_evaluation_and_the_loop_goes_on(
    validator: Validator, api: Client, proxy: SwitchedProxy
) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())
    validator.referee.hold = asyncio.Event()
    await validator.open()
    validator.loop._clock = _HastyClock()

    gone = web.json_response({"detail": "the submission was leased again since"}, status=409)
    proxy.replies[f"/evaluations/{submitted.submission_id}/heartbeat"] = [gone]
    validator.run("loop")

    async def stopped() -> bool:
        return validator.referee.cancelled == 1

    await validator.until(stopped)
    assert await validator.journal.list("verdict") == []
    assert proxy.accepted("/evaluations/lease") >= 1
    validator.ensure_running()


async def test_refused_verdict_counts_for_the_own_ranking_only(
    validator: Validator, api: Client, proxy: SwitchedProxy
) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())

    refusal = web.json_response({"detail": "lease_id has ended with a verdict"}, status=409)
    proxy.replies[f"/evaluations/{submitted.submission_id}/verdict"] = [refusal]
    await validator.start("loop")

    async def refused() -> bool:
        records = await validator.journal.list("verdict")
        return [record.state for record in records] == ["refused"]

    await validator.until(refused)
    assert validator.store.passed_hotkeys() == {validator.subnet.miner.ss58_address}


@pytest.mark.parametrize("path", ["/evaluations/lease", "/info"])
async def test_api_outage_is_waited_out(
    validator: Validator, api: Client, proxy: SwitchedProxy, path: str
) -> None:
    proxy.cut_before[path] = 3
    submitted = await api.submit(validator.subnet.miner, Code())
    await validator.start("loop")
    assert (await until_judged(validator, api, submitted.submission_id))["status"] == "passed"


async def test_infrastructure_faults_are_tried_again_by_the_apis_rule(
    validator: Validator, api: Client
) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())
    validator.referee = ScriptedReferee([report(Status.INFRASTRUCTURE, None), report()])
    await validator.start("loop")

    async def passed() -> bool:
        return any(
            verdict["status"] == "passed" for verdict in await verdicts_of(api, submitted.submission_id)
        )

    await validator.until(passed)
    assert len(validator.referee.asked) == 2
    assert validator.store.passed_hotkeys() == {validator.subnet.miner.ss58_address}


async def test_two_devices_judge_at_the_same_time_and_each_verdict_is_sent_once(
    validator: Validator, api: Client, proxy: SwitchedProxy
) -> None:
    first = await api.submit(validator.subnet.miner, Code("a"))
    second = await api.submit(validator.subnet.rival, Code("b"))
    validator.referee.hold = asyncio.Event()
    await validator.open()
    validator.other_loop = validator.make_loop(validator.referee)
    validator.run("loop", "other_loop")

    async def both_asked() -> bool:
        return len(validator.referee.asked) == 2

    await validator.until(both_asked)
    validator.referee.hold.set()
    for submitted in (first, second):
        assert (await until_judged(validator, api, submitted.submission_id))["status"] == "passed"
    await validator.until(lambda: _all_acknowledged(validator))
    for submitted in (first, second):
        assert proxy.accepted(f"/evaluations/{submitted.submission_id}/verdict") == 1


async def test_a_device_that_does_not_compute_is_out_of_service_until_it_does(
    validator: Validator, api: Client
) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())
    validator.referee = ScriptedReferee(
        [report(Status.INFRASTRUCTURE, None), report()], device="cuda:1", works=[False, False]
    )
    await validator.open()
    seen: list[float] = []

    class Waiting(_HastyClock):
        async def sleep(self, seconds: float) -> None:
            if seconds == RECHECK_S:
                seen.append(validator.metrics.device_in_service.labels("cuda:1")._value.get())
                assert len(validator.referee.asked) == 1
            await super().sleep(seconds)

    validator.loop._clock = Waiting()
    validator.run("loop")

    async def passed() -> bool:
        return any(
            verdict["status"] == "passed" for verdict in await verdicts_of(api, submitted.submission_id)
        )

    await validator.until(passed)
    assert seen == [0.0, 0.0]
    assert validator.metrics.device_in_service.labels("cuda:1")._value.get() == 1


async def test_a_device_that_is_missing_at_the_start_is_looked_for_before_anything_is_leased(
    validator: Validator, api: Client
) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())
    validator.referee = ScriptedReferee([report()], device="cuda:1", works=[False, False])
    await validator.open()
    in_service = validator.metrics.device_in_service.labels("cuda:1")
    seen: list[tuple[float, int]] = []

    class Waiting(_HastyClock):
        async def sleep(self, seconds: float) -> None:
            if seconds == RECHECK_S:
                seen.append((in_service._value.get(), len(validator.referee.asked)))
            await super().sleep(seconds)

    validator.loop = validator.make_loop(validator.referee, is_device_missing=True)
    validator.loop._clock = Waiting()
    validator.run("loop")
    assert (await until_judged(validator, api, submitted.submission_id))["status"] == "passed"
    assert seen == [(0.0, 0), (0.0, 0)]
    assert in_service._value.get() == 1


class _StoppedClock(_HastyClock):
    """A clock on which a device that is out of service is not asked again before `go`."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.rechecks = 0

    async def is_out_of_service(self) -> bool:
        return self.rechecks == 1

    async def sleep(self, seconds: float) -> None:
        if seconds == RECHECK_S:
            self.rechecks += 1
            await self.go.wait()
        await super().sleep(seconds)


async def test_what_was_judged_reaches_the_api_while_the_device_does_not_compute(
    validator: Validator, api: Client
) -> None:
    """The leads of what was just judged come before the next lease, and a GPU may fail in the first."""
    rivals = (validator.subnet.miner, validator.subnet.rival)
    submitted = [await api.submit(miner, Code(name)) for miner, name in zip(rivals, "ab", strict=True)]
    validator.referee = ScriptedReferee(
        [report(tokens_per_sec=1000.0), report(tokens_per_sec=2000.0)],
        comparisons=[comparison_report(LeadOutcome.INFRASTRUCTURE, None)],
        works=[False] * 1000,
    )
    await validator.open()
    for miner in rivals:
        await validator.check(miner)
    validator.loop._clock = clock = _StoppedClock()
    validator.run("loop")
    await validator.until(clock.is_out_of_service)
    for one in submitted:
        assert (await until_judged(validator, api, one.submission_id))["status"] == "passed"
    assert clock.rechecks == 1
    assert validator.referee.compared


async def test_what_the_api_did_not_take_is_sent_whenever_the_device_is_asked_again(
    validator: Validator, api: Client, proxy: SwitchedProxy
) -> None:
    submitted = await api.submit(validator.subnet.miner, Code())
    validator.referee = ScriptedReferee([report(Status.INFRASTRUCTURE, None)], works=[False] * 1000)
    refusal = web.json_response({"detail": "the API has other worries"}, status=403)
    proxy.replies[f"/evaluations/{submitted.submission_id}/verdict"] = [refusal]
    await validator.open()
    validator.loop._clock = clock = _StoppedClock()
    validator.run("loop")
    await validator.until(clock.is_out_of_service)
    assert not await _all_acknowledged(validator)
    clock.go.set()
    await validator.until(lambda: _all_acknowledged(validator))
    # It is out of service still.
    assert validator.referee.works
    assert len(validator.referee.asked) == 1


async def test_an_outage_does_not_use_up_the_tries_of_the_whole_queue(
    validator: Validator, api: Client, proxy: SwitchedProxy
) -> None:
    """After two failures in a row nothing is leased for a minute; then the queue goes on."""
    submitted = [await api.submit(key(name), Code(name)) for name in ("miner", "rival")]
    broken = report(Status.INFRASTRUCTURE, None)
    validator.referee = ScriptedReferee([broken, broken, report()])
    validator.clock = clock = FakeClock()
    await validator.start("loop")

    def leases() -> int:
        return sum(path == "/evaluations/lease" for path, _ in proxy.posts)

    async def sleeps() -> bool:
        return clock.sleepers == 1

    await validator.until(lambda: _all_acknowledged_after(validator, 2))
    asked_for = leases()
    for _ in range(5):
        await validator.until(sleeps)
        await clock.advance(11.0)
    await validator.until(sleeps)
    assert (leases(), len(validator.referee.asked)) == (asked_for, 2)
    await clock.advance(6.0)

    async def go_on() -> bool:
        # The API waits by a clock of its own before it gives one out again.
        await clock.advance(1.0)
        return await _all_acknowledged_after(validator, 4)

    await validator.until(go_on)
    for one in submitted:
        assert [verdict["status"] for verdict in await verdicts_of(api, one.submission_id)] == ["passed"]
