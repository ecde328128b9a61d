"""What the validator ranks by: its own verdicts and logit checks, also after a restart."""

from datetime import timedelta

import pytest

from protocol.errors import ConfigError
from protocol.messages import Figures
from protocol.rules import LOGIT_PASS_SECONDS
from protocol.verdicts import LogitOutcome, Status
from roles.validator.verdict_store import VERDICT, trial_throughputs
from tests.fakes.clock import FakeClock
from tests.roles.miner.harness import report
from tests.roles.validator.harness import Validator, lease


@pytest.fixture
async def opened(validator: Validator) -> Validator:
    """The validator with a clock that stands still, its store open."""
    validator.clock = FakeClock()
    await validator.open()
    return validator


def ranked(validator: Validator) -> dict[int, float]:
    """Submission -> throughput of everything that may be ranked now."""
    entries = validator.store.entries(validator.clock.now())
    return {entry.submission_id: entry.tokens_per_sec for entry in entries}


async def test_ranked_are_passed_kernels_of_miners_with_passed_logits(opened: Validator) -> None:
    subnet = opened.subnet
    await opened.judge(1, subnet.miner, report(tokens_per_sec=100.0))
    await opened.judge(2, subnet.miner, report(Status.WRONG_OUTPUT, None))
    await opened.judge(3, subnet.rival, report(tokens_per_sec=300.0))
    assert ranked(opened) == {}
    await opened.check(subnet.miner)
    assert ranked(opened) == {1: 100.0}
    await opened.check(subnet.rival)
    assert ranked(opened) == {1: 100.0, 3: 300.0}
    await opened.check(subnet.miner, LogitOutcome.FAILED)
    assert ranked(opened) == {3: 300.0}


async def test_everything_is_there_after_a_restart(opened: Validator) -> None:
    await opened.judge(1, opened.subnet.miner, report(tokens_per_sec=100.0, fingerprint="f1"))
    await opened.check(opened.subnet.miner)
    before = opened.store.entries(opened.clock.now())
    await opened.kill()
    await opened.open()
    assert opened.store.entries(opened.clock.now()) == before != []
    assert [verdict.submission_id for verdict in await opened.store.unacknowledged_verdicts()] == [1]
    assert opened.store.passed_hotkeys() == {opened.subnet.miner.ss58_address}


async def test_a_verdict_of_an_earlier_build_is_one_sentence(opened: Validator) -> None:
    await opened.judge(1, opened.subnet.miner)
    (record,) = await opened.journal.list(VERDICT)
    data = {name: value for name, value in record.data.items() if name != "fork_url"}
    await opened.journal.put(VERDICT, record.key, record.state, data)
    await opened.kill()
    with pytest.raises(ConfigError, match="earlier build and has no 'fork_url'"):
        await opened.open()


async def test_pass_of_logits_lasts_a_day_and_pending_does_not_end_it(opened: Validator) -> None:
    assert isinstance(opened.clock, FakeClock)
    await opened.judge(1, opened.subnet.miner)
    await opened.check(opened.subnet.miner)
    await opened.clock.advance(LOGIT_PASS_SECONDS / 2)
    await opened.check(opened.subnet.miner, LogitOutcome.PENDING)
    assert ranked(opened) == {1: 1000.0}
    await opened.clock.advance(LOGIT_PASS_SECONDS / 2 - 1)
    assert ranked(opened) == {1: 1000.0}
    await opened.clock.advance(1)
    assert ranked(opened) == {}


async def test_measurements_of_one_submission_are_pooled(opened: Validator) -> None:
    await opened.check(opened.subnet.miner)
    first, second = report(tokens_per_sec=100.0), report(tokens_per_sec=140.0)
    first.figures.evidence["trial_s"] = [1.0, 1.0, 1.0]
    second.figures.evidence["trial_s"] = [1.0]
    await opened.judge(1, opened.subnet.miner, first, minutes=1)
    assert ranked(opened) == {1: 100.0}
    await opened.judge(1, opened.subnet.miner, second, minutes=2)
    # Three trials of the first evaluation, one of the second: the median of all four.
    assert ranked(opened) == {1: 100.0}


async def test_last_word_on_a_submission_counts(opened: Validator) -> None:
    await opened.check(opened.subnet.miner)
    await opened.judge(1, opened.subnet.miner, minutes=1)
    await opened.judge(1, opened.subnet.miner, report(Status.INFRASTRUCTURE, None), minutes=2)
    assert ranked(opened) == {1: 1000.0}
    await opened.judge(1, opened.subnet.miner, report(Status.TAMPERED, None), minutes=3)
    assert ranked(opened) == {}
    assert opened.store.passed_hotkeys() == set()


async def test_only_earlier_submissions_of_others_are_known_fingerprints(opened: Validator) -> None:
    miner, rival = opened.subnet.miner, opened.subnet.rival
    await opened.judge(1, miner, report(fingerprint="mine"), minutes=1)
    await opened.judge(2, rival, report(fingerprint="theirs"), minutes=2)
    await opened.judge(3, rival, report(fingerprint="later"), minutes=9)
    await opened.judge(4, rival, report(Status.FETCH_FAILED, None), minutes=1)
    known = opened.store.known_fingerprints(lease(5, miner.ss58_address, minutes=5))
    assert known == {"theirs": 2}


async def test_copy_that_was_judged_before_its_original_leaves_the_ranking(opened: Validator) -> None:
    miner, rival = opened.subnet.miner, opened.subnet.rival
    await opened.check(miner)
    await opened.check(rival)
    await opened.judge(2, rival, report(fingerprint="same"), minutes=5)
    assert ranked(opened) == {2: 1000.0}
    await opened.judge(1, miner, report(fingerprint="same"), minutes=1)
    assert ranked(opened) == {1: 1000.0}


async def test_newer_check_is_not_closed_by_the_answer_to_an_older_one(opened: Validator) -> None:
    old = await opened.check(opened.subnet.miner, at=opened.clock.now() - timedelta(minutes=1))
    new = await opened.check(opened.subnet.miner)
    await opened.store.close_logit_check(old)
    assert await opened.store.unacknowledged_logit_checks() == [new]
    await opened.store.close_logit_check(new)
    assert await opened.store.unacknowledged_logit_checks() == []


def figures(**evidence: object) -> Figures:
    """Figures with evidence."""
    given = report(tokens_per_sec=100.0).figures
    return given.model_copy(update={"evidence": evidence})


def test_trials_come_from_the_evidence_when_it_has_them() -> None:
    assert trial_throughputs(figures(trial_s=[2.0, 1.0, 4.0])) == (100.0, 200.0, 50.0)
    assert trial_throughputs(figures()) == (100.0,)
    assert trial_throughputs(figures(trial_s=[0.0])) == (100.0,)
    assert trial_throughputs(figures(trial_s="1")) == (100.0,)
    assert trial_throughputs(report(Status.CRASHED, None).figures) == ()
