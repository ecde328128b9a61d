"""Leads that decide money are run again first: on a real journal, API and chain, with a scripted referee."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from protocol.leads import FAILED_ATTEMPTS, LONGEST_RETRY_S
from protocol.messages import GitSource
from protocol.ranking import Ranking, rank, reward_shares
from protocol.types import CommitHash
from protocol.verdicts import LeadOutcome, LogitOutcome
from roles.status import SHOWN
from roles.validator import leads, weight_setter
from roles.validator.comparison_store import COMPARISON, ComparisonStore
from tests.fakes.clock import START, FakeClock
from tests.roles.api.harness import Client, Code, key
from tests.roles.miner.harness import ScriptedReferee, comparison_report, report
from tests.roles.proxy import SwitchedProxy
from tests.roles.validator.harness import Validator

SLOW, FAST = 101, 102
COMMITS = CommitHash("1" * 40), CommitHash("2" * 40)


async def enter(validator: Validator) -> None:
    """A slow submission, and a fast one of another miner that came later."""
    for number, name, speed in ((SLOW, "miner", 1000.0), (FAST, "rival", 2000.0)):
        await validator.judge(number, key(name), report(tokens_per_sec=speed), minutes=number)
        await validator.check(key(name), at=validator.clock.now())


def order(validator: Validator) -> list[int]:
    """Submissions by place."""
    entries = validator.store.entries(validator.clock.now())
    return [place.entry.submission_id for place in validator.leads.ranking(entries).places]


async def test_a_lead_is_run_again_at_once_told_to_the_api_and_counts(
    validator: Validator, api: Client
) -> None:
    validator.referee = ScriptedReferee([report(tokens_per_sec=1000.0), report(tokens_per_sec=2000.0)])
    await validator.start("loop")
    submitted = []
    for name in ("miner", "rival"):
        answer = await api.submit(key(name), Code(name))
        submitted.append(answer.submission_id)

        async def is_judged(number: int = answer.submission_id) -> bool:
            return bool((await api.get(f"/submissions/{number}")).body["verdicts"])

        await validator.until(is_judged)
        await validator.check(key(name))
        await api.check_logits(validator.subnet.validator, key(name), LogitOutcome.PASSED)
    slow, fast = submitted

    async def is_told() -> list[Any]:
        return list((await api.get(f"/submissions/{fast}")).body["comparisons"])

    [told] = await validator.until(is_told)
    assert (told["later_submission_id"], told["earlier_submission_id"]) == (fast, slow)
    assert told["outcome"] == "confirmed"
    [(later, earlier)] = validator.referee.compared
    assert isinstance(later, GitSource)
    assert (later.commit_hash, earlier.commit_hash) == (Code("rival").commit_hash, Code("miner").commit_hash)
    assert later.allow_file
    assert order(validator) == [fast, slow]

    async def is_acknowledged() -> bool:
        return await validator.comparisons.unacknowledged() == []

    await validator.until(is_acknowledged)
    assert [row["submission_id"] for row in (await api.get("/leaderboard")).body["rows"]] == [fast, slow]


async def test_what_has_not_changed_is_not_ranked_again(
    validator: Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    rankings: list[Ranking] = []

    def counted(*basis: Any) -> Ranking:
        rankings.append(rank(*basis))
        return rankings[-1]

    monkeypatch.setattr(leads, "rank", counted)
    validator.referee = ScriptedReferee(comparisons=[comparison_report(LeadOutcome.CONFIRMED, 2.0)])
    await validator.open()
    await enter(validator)
    for _ in range(3):
        assert validator.leads.are_settling()
    assert len(rankings) == 1
    assert await validator.leads.compare_next(validator.referee) is LeadOutcome.CONFIRMED
    assert not validator.leads.are_settling()
    assert len(rankings) == 2


async def test_a_lead_that_is_not_confirmed_leaves_the_place_to_the_earlier_one(validator: Validator) -> None:
    validator.referee = ScriptedReferee(comparisons=[comparison_report(LeadOutcome.NOT_CONFIRMED, 1.01)])
    await validator.open()
    await enter(validator)
    assert order(validator) == [SLOW, FAST]
    assert await validator.leads.compare_next(validator.referee) is LeadOutcome.NOT_CONFIRMED
    assert order(validator) == [SLOW, FAST]
    assert await validator.leads.compare_next(validator.referee) is None
    assert await validator.leads.describe() == [
        {"later": FAST, "earlier": SLOW, "outcome": "not_confirmed", "ratio": 1.01, "settled": True}
    ]


async def test_a_rerun_that_a_crash_interrupted_is_made_again(validator: Validator) -> None:
    class Hanging(ScriptedReferee):
        async def compare(self, **_: Any) -> Any:
            await asyncio.Event().wait()

    await validator.open()
    await enter(validator)
    task = asyncio.create_task(validator.leads.compare_next(Hanging()))
    while not validator.leads._running:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await validator.kill()

    await validator.open()
    assert order(validator) == [SLOW, FAST]
    assert await validator.leads.compare_next(validator.referee) is LeadOutcome.CONFIRMED
    assert order(validator) == [FAST, SLOW]


async def test_a_confirmed_lead_outlives_the_process_and_reaches_the_api_later(
    validator: Validator, api: Client, proxy: SwitchedProxy
) -> None:
    await validator.open()
    await enter(validator)
    await validator.settle_leads()
    await validator.kill()

    await validator.open()
    assert order(validator) == [FAST, SLOW]
    assert await validator.leads.compare_next(validator.referee) is None
    # This API knows neither submission: what it refuses counts here all the same, and is not sent again.
    validator.run("loop")

    async def is_refused() -> bool:
        records = await validator.journal.list(COMPARISON)
        return [record.state for record in records] == ["refused"]

    await validator.until(is_refused)
    assert proxy.accepted("/comparisons") <= 1
    assert order(validator) == [FAST, SLOW]


async def test_own_failures_are_tried_again_later_and_never_count(validator: Validator) -> None:
    clock = validator.clock = FakeClock()
    validator.referee = ScriptedReferee(comparisons=[comparison_report(LeadOutcome.INFRASTRUCTURE, None)])
    await validator.open()
    await enter(validator)
    for _ in range(FAILED_ATTEMPTS + 2):
        assert validator.leads.are_settling() is (not validator.referee.compared)
        assert await validator.leads.compare_next(validator.referee) is LeadOutcome.INFRASTRUCTURE
        assert await validator.leads.compare_next(validator.referee) is None
        assert order(validator) == [SLOW, FAST]
        assert await validator.comparisons.unacknowledged() == []
        await clock.advance(LONGEST_RETRY_S)
    validator.referee.comparisons = [comparison_report()]
    assert await validator.leads.compare_next(validator.referee) is LeadOutcome.CONFIRMED
    assert order(validator) == [FAST, SLOW]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [(LeadOutcome.EARLIER_FAILED, [FAST, SLOW]), (LeadOutcome.LATER_FAILED, [SLOW, FAST])],
)
async def test_who_fails_again_and_again_has_lost(
    outcome: LeadOutcome, expected: list[int], validator: Validator
) -> None:
    clock = validator.clock = FakeClock()
    validator.referee = ScriptedReferee(comparisons=[comparison_report(outcome, None)])
    await validator.open()
    await enter(validator)
    for _ in range(FAILED_ATTEMPTS):
        assert order(validator) == [SLOW, FAST]
        assert await validator.leads.compare_next(validator.referee) is outcome
        await clock.advance(LONGEST_RETRY_S)
    assert order(validator) == expected
    assert await validator.leads.compare_next(validator.referee) is None
    [comparison] = await validator.comparisons.unacknowledged()
    assert comparison.outcome is outcome


async def test_the_count_of_failures_outlives_the_process(validator: Validator) -> None:
    await validator.open()
    await enter(validator)
    validator.referee.comparisons = [comparison_report(LeadOutcome.LATER_FAILED, None)]
    assert await validator.leads.compare_next(validator.referee) is LeadOutcome.LATER_FAILED
    again = ComparisonStore(validator.journal, validator.store.commit_hash)
    await again.load()
    assert again.summary() == validator.comparisons.summary()
    [pair] = again._tries
    assert again.tries(pair) == validator.comparisons.tries(pair) is not None


async def test_the_status_file_has_the_re_runs_that_came_last(validator: Validator) -> None:
    await validator.open()
    # The last one is the first pair's second try.
    for minute, number in enumerate([*range(1, SHOWN + 2), 1]):
        comparison = validator.api.sign_comparison(
            **comparison_report(LeadOutcome.LATER_FAILED, None).figures.model_dump(),
            later_submission_id=number + 1000,
            earlier_submission_id=number,
        )
        await validator.comparisons.put(comparison, COMMITS, START + timedelta(minutes=minute))
    assert [one["earlier"] for one in await validator.leads.describe()] == [*range(3, SHOWN + 2), 1]


async def test_two_devices_never_run_the_same_lead(validator: Validator) -> None:
    await validator.open()
    await enter(validator)
    hold = asyncio.Event()

    class Slow(ScriptedReferee):
        async def compare(self, **sides: Any) -> Any:
            await hold.wait()
            return await super().compare(**sides)

    first = asyncio.create_task(validator.leads.compare_next(Slow()))
    while not validator.leads._running:
        await asyncio.sleep(0)
    assert await validator.leads.compare_next(validator.referee) is None
    assert validator.leads.are_settling()
    hold.set()
    assert await first is LeadOutcome.CONFIRMED


async def test_an_open_lead_does_not_keep_new_submissions_waiting(validator: Validator, api: Client) -> None:
    validator.referee = ScriptedReferee(
        [report(tokens_per_sec=1.0)], comparisons=[comparison_report(LeadOutcome.INFRASTRUCTURE, None)]
    )
    await validator.open()
    await enter(validator)
    submitted = await api.submit(validator.subnet.miner, Code())
    validator.run("loop")

    async def is_judged() -> bool:
        return bool((await api.get(f"/submissions/{submitted.submission_id}")).body["verdicts"])

    await validator.until(is_judged)
    assert len(validator.referee.compared) == 1


async def test_weights_wait_for_a_rerun_but_not_for_ever(
    validator: Validator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_setter, "LEADS_PATIENCE_S", 60.0)
    clock = validator.clock = FakeClock(START)
    await validator.open()
    await enter(validator)
    setter = validator.setter
    setter._height = await validator.tick(1)
    assert not setter._is_due()
    await clock.advance(61.0)
    assert setter._is_due()
    await validator.settle_leads()
    assert setter._is_due()
    metagraph = await validator.chain.metagraph()
    assert reward_shares(setter._ranked(metagraph)) == {
        key("rival").ss58_address: 0.6,
        key("miner").ss58_address: 0.25,
    }


async def test_a_re_run_says_nothing_of_others_that_have_the_same_numbers(validator: Validator) -> None:
    """An API that was restored from a backup gives its numbers again."""
    await validator.open()
    await enter(validator)
    assert await validator.leads.compare_next(validator.referee) is LeadOutcome.CONFIRMED
    assert order(validator) == [FAST, SLOW]
    again = report(tokens_per_sec=3000.0)
    await validator.judge(FAST, key("rival"), again, minutes=FAST + 1, commit_hash="f" * 40)
    assert order(validator) == [SLOW, FAST]
    assert await validator.leads.compare_next(validator.referee) is LeadOutcome.CONFIRMED
    assert order(validator) == [FAST, SLOW]


async def test_a_clock_that_was_wrong_puts_off_no_re_run(validator: Validator) -> None:
    year = timedelta(days=365)
    validator.clock = ahead = FakeClock(START + year)
    validator.referee = ScriptedReferee(
        comparisons=[
            comparison_report(LeadOutcome.INFRASTRUCTURE, None),
            comparison_report(LeadOutcome.CONFIRMED, 2.0),
        ]
    )
    await validator.open()
    await enter(validator)
    assert await validator.leads.compare_next(validator.referee) is LeadOutcome.INFRASTRUCTURE
    ahead._start -= year
    for name in ("miner", "rival"):
        await validator.check(key(name), at=ahead.now())
    assert await validator.leads.compare_next(validator.referee) is LeadOutcome.CONFIRMED
