"""What the validator ranks by: its own verdicts and logit checks, also after a restart."""

import os
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from node.journal import Journal
from protocol.errors import ConfigError
from protocol.messages import Figures, Verdict
from protocol.rules import LOGIT_PASS_SECONDS
from protocol.verdicts import LogitOutcome, Status
from roles.status import SHOWN
from roles.validator.verdict_store import (
    ACKNOWLEDGED,
    RECORDED,
    REFUSED,
    VERDICT,
    WHOLE,
    VerdictStore,
    trial_throughputs,
)
from tests.fakes.clock import FakeClock
from tests.roles.miner.harness import KEY, report
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


LOG = "a line of a long log; "


def long_report(**changes: Any) -> Any:
    """A report with a long log among its evidence, and two trials."""
    given = report(tokens_per_sec=100.0, **changes)
    given.figures.evidence.update(trial_s=[1.0, 2.0], log_tail=1000 * LOG)
    return given


async def test_evidence_is_kept_until_the_api_has_it(opened: Validator) -> None:
    await opened.check(opened.subnet.miner)
    await opened.judge(1, opened.subnet.miner, long_report(fingerprint="f1"), minutes=1)
    await opened.judge(2, opened.subnet.miner, long_report(fingerprint="f2"), minutes=2)
    before = opened.store.entries(opened.clock.now()), opened.store.judgement(1), opened.store.judgement(2)
    delivered, refused = await opened.store.unacknowledged_verdicts()
    assert delivered.evidence["log_tail"] == 1000 * LOG
    await opened.store.close_verdict(delivered)
    # Nobody else has the evidence of this one.
    await opened.store.close_verdict(refused, is_refused=True)
    short, whole = await opened.journal.list(VERDICT)
    assert LOG not in str(short.data)
    assert str(whole.data).count("log_tail") == 1
    await opened.kill()
    await opened.open()
    assert await opened.store.unacknowledged_verdicts() == []
    after = opened.store.entries(opened.clock.now()), opened.store.judgement(1), opened.store.judgement(2)
    assert after == before
    assert after[1].trials == (150.0, 75.0)


async def put_as_before(journal: Journal, verdict: Verdict, state: str) -> None:
    """Write a verdict down as earlier builds did: twice, with all evidence, for ever."""
    data = {
        "submission_id": verdict.submission_id,
        "hotkey": "hot",
        "fork_url": "https://github.com/a/b",
        "commit_hash": f"{verdict.submission_id:040x}",
        "target_sequence_length": 100_000,
        "code_fixed_at": "2026-01-01T00:00:00+00:00",
        "round_number": 1,
        "fingerprint": f"f{verdict.submission_id}",
        "figures": verdict.model_dump(mode="json", include=set(Figures.model_fields)),
        "verdict": verdict.model_dump(mode="json"),
    }
    await journal.put(VERDICT, verdict.lease_id, state, data)


def long_verdict(opened: Validator, number: int) -> Verdict:
    """A verdict with a long log."""
    figures = {name: getattr(long_report().figures, name) for name in Figures.model_fields}
    return opened.api.sign_verdict(**figures, lease_id=f"lease-{number}", submission_id=number)


async def test_what_earlier_builds_kept_is_read_and_shortened(opened: Validator) -> None:
    await put_as_before(opened.journal, long_verdict(opened, 1), ACKNOWLEDGED)
    await put_as_before(opened.journal, waiting := long_verdict(opened, 2), RECORDED)
    for _ in range(2):
        await opened.kill()
        await opened.open()
        for number in (1, 2):
            judgement = opened.store.judgement(number)
            assert (judgement.status, judgement.fingerprint) == (Status.PASSED, f"f{number}")
            assert (judgement.measured_tokens_per_sec, judgement.trials) == (100.0, (150.0, 75.0))
        short, whole = await opened.journal.list(VERDICT)
        assert (short.state, whole.state) == (ACKNOWLEDGED, RECORDED)
        assert LOG not in str(short.data)
        assert await opened.store.unacknowledged_verdicts() == [waiting]
    await opened.store.close_verdict(waiting)
    assert LOG not in str(await opened.journal.list(VERDICT))


async def test_start_does_not_hold_all_evidence_in_memory(opened: Validator) -> None:
    for number in range(1, 1001):
        await put_as_before(opened.journal, long_verdict(opened, number), ACKNOWLEDGED)
    tracemalloc.start()
    try:
        store = VerdictStore(opened.journal)
        await store.load()
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert store.judgement(1000).status is Status.PASSED
    # On disk they were 42 MB.
    assert kept < 4 * 2**20
    assert peak < 32 * 2**20


WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from pathlib import Path
    from node.journal import Journal
    from roles.validator.verdict_store import VERDICT, VerdictStore
    from tests.roles.api.harness import key, verdict_message
    from tests.roles.validator.harness import lease

    async def main():
        journal = Journal(Path(sys.argv[1]), bytes.fromhex(sys.argv[2]))
        store = VerdictStore(journal)
        await store.load()
        start = len(await journal.list(VERDICT)) + 1
        for number in range(start, start + 100_000):
            leased = lease(number, key("miner").ss58_address)
            verdict = verdict_message(key("validator"), leased, evidence={"log_tail": "a log"})
            await store.put_verdict(verdict, leased)
            print("kept", number, flush=True)
            await store.close_verdict(verdict)
            print("delivered", number, flush=True)

    asyncio.run(main())
    """
)


async def test_killed_validator_has_every_verdict_whole_or_delivered(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    said: set[str] = set()
    for lines in (5, 40, 17):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), KEY.hex()], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said |= {writer.stdout.readline().strip() for _ in range(lines)}
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split("\n")
        writer.stdout.close()
        writer.wait()
        said |= set(rest[:-1])
        async with Journal(path, KEY) as journal:
            records = await journal.list(VERDICT)
            store = VerdictStore(journal)
            await store.load()
        kept = {f"kept {record.data['submission_id']}" for record in records}
        delivered = {
            f"delivered {record.data['submission_id']}" for record in records if record.state == ACKNOWLEDGED
        }
        assert kept | delivered >= said
        assert len(store.passed_hotkeys()) == 1
        for record in records:
            assert store.judgement(record.data["submission_id"]).measured_tokens_per_sec == 1200.0
            assert ("a log" in str(record.data)) == (record.state == RECORDED)


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


async def test_a_miner_may_submit_again_what_another_has_copied_meanwhile(opened: Validator) -> None:
    miner, rival = opened.subnet.miner, opened.subnet.rival
    await opened.judge(1, miner, report(fingerprint="mine"), minutes=1)
    await opened.judge(2, rival, report(Status.DUPLICATE, None, fingerprint="mine"), minutes=2)
    assert opened.store.known_fingerprints(lease(3, miner.ss58_address, minutes=3)) == {}
    assert opened.store.known_fingerprints(lease(3, rival.ss58_address, minutes=3)) == {"mine": 1}


async def test_an_original_that_cannot_be_fetched_any_more_is_still_the_original(opened: Validator) -> None:
    miner, rival = opened.subnet.miner, opened.subnet.rival
    await opened.check(rival)
    await opened.judge(1, miner, report(fingerprint="mine"), minutes=1)
    await opened.judge(2, rival, report(fingerprint="mine"), minutes=2)
    await opened.judge(1, miner, report(Status.FETCH_FAILED, None), minutes=1.5)
    assert opened.store.known_fingerprints(lease(3, rival.ss58_address, minutes=3)) == {"mine": 1}
    assert ranked(opened) == {}


async def test_the_status_file_has_the_newest_of_what_was_judged(opened: Validator) -> None:
    for number in range(1, SHOWN + 4):
        await opened.judge(number, opened.subnet.miner, minutes=1)
    await opened.judge(5, opened.subnet.miner, report(Status.TAMPERED, None), minutes=2)
    shown = opened.store.summary(opened.clock.now())
    assert [one["submission_id"] for one in shown] == [4, *range(6, SHOWN + 4), 5]
    assert [one["status"] for one in shown] == ["passed"] * (SHOWN - 1) + ["tampered"]
    await opened.kill()
    await opened.open()
    assert opened.store.summary(opened.clock.now()) == shown


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


async def test_a_number_that_is_given_again_is_another_submission(opened: Validator) -> None:
    """By an API that was restored from a backup."""
    miner, rival = opened.subnet.miner, opened.subnet.rival
    await opened.check(miner)
    await opened.check(rival)
    await opened.judge(1, miner, report(tokens_per_sec=1000.0), minutes=1)
    await opened.judge(1, rival, report(tokens_per_sec=200.0), minutes=2)
    assert ranked(opened) == {1: 200.0}
    again = VerdictStore(opened.journal)
    await again.load()
    assert again.entries(opened.clock.now()) == opened.store.entries(opened.clock.now())


async def test_a_pass_of_a_date_to_come_is_of_a_wrong_clock(opened: Validator) -> None:
    await opened.judge(1, opened.subnet.miner)
    await opened.check(opened.subnet.miner, at=opened.clock.now() + timedelta(days=365))
    assert ranked(opened) == {}


async def test_what_another_hotkey_has_signed_holds_nothing_up(opened: Validator) -> None:
    """The operator has given the validator another hotkey, and the API refuses the one before."""
    await opened.judge(1, opened.subnet.miner)
    await opened.check(opened.subnet.miner)
    opened.subnet.validator = opened.subnet.rival
    await opened.open()
    await opened.sender.send_all()
    await opened.challenger._send_checks()
    assert await opened.store.unacknowledged_verdicts() == []
    assert await opened.store.unacknowledged_logit_checks() == []
    assert ranked(opened) == {1: 1000.0}
    [record] = await opened.journal.list(VERDICT, [REFUSED])
    assert WHOLE in record.data
