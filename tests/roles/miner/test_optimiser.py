"""The optimisation loop: what is measured, what is handed over, and what a restart does not repeat."""

from typing import Any

import pytest

from protocol.events import CandidateVerified
from protocol.messages import DirectorySource
from protocol.verdicts import Status
from roles.miner.ledger import CandidateLedger, Stage
from roles.miner.proposer import Candidate
from tests.roles.miner.harness import TARGET, ListProposer, Miner, ScriptedReferee, files, report


def candidates(*texts: str) -> ListProposer:
    """A proposer of one candidate for each text."""
    return ListProposer(*(Candidate(text.strip(), files(text)) for text in texts))


async def wait_for_candidates(miner: Miner, count: int) -> list[Any]:
    """Wait until that many candidates are in the journal."""

    async def found() -> Any:
        records = await miner.journal.list("candidate")
        return records if len(records) >= count else None

    return list(await miner.until(found))


async def test_passed_candidate_is_measured_committed_and_handed_over(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n")
    await miner.start("optimiser")
    (record,) = await wait_for_candidates(miner, 1)
    (asked,) = miner.referee.asked
    assert isinstance(asked["source"], DirectorySource)
    assert asked["files"] == files("x = 1\n")
    assert (asked["target"], asked["claim"]) == (TARGET, None)
    (event,) = miner.recorder.of(CandidateVerified)
    assert event.tokens_per_sec == 1000.0
    assert event.claim_tokens_per_sec == pytest.approx(950.0)
    assert event.fork_url == miner.fork.url
    assert record.state == "offered"
    assert record.data["offer"]["commit_hash"] == event.commit_hash
    assert record.data["figures"]["gpu"] == "cpu"


@pytest.mark.parametrize("status", [Status.WRONG_OUTPUT, Status.IMPORTS_MISSING, Status.CRASHED])
async def test_failed_candidate_is_kept_as_history_and_not_handed_over(miner: Miner, status: Status) -> None:
    miner.proposer = candidates("x = 1\n")
    miner.referee = ScriptedReferee([report(status, None)])
    await miner.start("optimiser")
    (record,) = await wait_for_candidates(miner, 1)
    assert record.state == "failed"
    assert record.data["reason"] == f"scripted {status.value}"
    assert miner.recorder.of(CandidateVerified) == []


async def test_only_what_beats_the_last_submission_by_the_margin_is_handed_over(
    miner: Miner,
) -> None:
    miner.change(submit_margin=0.1)
    miner.proposer = candidates("x = 1\n", "x = 2\n", "x = 3\n")
    speeds = (1000.0, 1099.0, 1101.0)
    miner.referee = ScriptedReferee([report(tokens_per_sec=speed) for speed in speeds])
    await miner.start("optimiser", "coordinator")
    await wait_for_candidates(miner, 1)
    await miner.until_stage(Stage.COMMITTED)
    records = await wait_for_candidates(miner, 3)
    states = {record.data["tokens_per_sec"]: record.state for record in records}
    assert states == {1000.0: "offered", 1099.0: "kept", 1101.0: "offered"}


async def test_submission_that_failed_is_not_the_one_to_beat(miner: Miner) -> None:
    miner.proposer = candidates("x = 2\n")
    miner.referee = ScriptedReferee([report(tokens_per_sec=10.0)])
    await miner.start("coordinator")
    await miner.offer("x = 1\n")
    committed = await miner.until_stage(Stage.COMMITTED)
    await miner.ledger.advance(committed, Stage.JUDGED, verdict="wrong_output")
    miner.run("optimiser")
    records = await wait_for_candidates(miner, 1)
    assert [record.state for record in records] == ["offered"]


async def test_restart_measures_and_submits_nothing_again(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n", "x = 2\n")
    miner.referee = ScriptedReferee([report(), report(Status.WRONG_OUTPUT, None)])
    await miner.start("optimiser", "coordinator")
    await wait_for_candidates(miner, 2)
    submission = await miner.until_stage(Stage.COMMITTED)
    await miner.kill()

    miner.proposer = candidates("x = 1\n", "x = 2\n", "x = 3\n")
    miner.referee = ScriptedReferee([report(tokens_per_sec=1.0)])
    await miner.start("optimiser", "coordinator")
    await wait_for_candidates(miner, 3)
    assert [asked["files"]["chunk.py"] for asked in miner.referee.asked] == ["x = 3\n"]
    assert [one.key for one in await miner.ledger.all()] == [submission.key]
    assert miner.recorder.of(CandidateVerified) == []


async def test_candidate_that_a_crash_kept_from_becoming_a_submission_is_handed_over_again(
    miner: Miner,
) -> None:
    miner.proposer = candidates("x = 1\n")
    await miner.start("optimiser")
    (record,) = await wait_for_candidates(miner, 1)
    await miner.kill()
    assert record.state == "offered"

    miner.proposer = candidates()
    await miner.start("optimiser", "coordinator")
    submission = await miner.until_stage(Stage.COMMITTED)
    assert submission.commit_hash == record.data["offer"]["commit_hash"]
    assert len(miner.referee.asked) == 1


async def test_candidate_whose_commitment_expired_is_handed_over_at_the_next_start(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n")
    await miner.start("optimiser", "coordinator")
    first = await miner.until_stage(Stage.COMMITTED)
    await miner.kill()
    miner.subnet.chain.advance(40)
    await miner.start("coordinator")
    await miner.until_stage(Stage.EXPIRED)
    await miner.kill()

    await miner.start("optimiser", "coordinator")
    again = await miner.until_stage(Stage.EXPIRED, Stage.COMMITTED, count=2)
    assert again.stage is Stage.COMMITTED
    assert again.commit_hash == first.commit_hash
    assert again.key != first.key


async def test_unverified_submission_goes_out_whatever_the_referee_says(miner: Miner) -> None:
    miner.change(verify_before_submit=False, unverified_claim_tokens_per_sec=2.5)
    miner.proposer = candidates("x = 1\n")
    miner.referee = ScriptedReferee([report(Status.WRONG_OUTPUT, None)])
    await miner.start("optimiser")
    (record,) = await wait_for_candidates(miner, 1)
    (event,) = miner.recorder.of(CandidateVerified)
    assert (event.tokens_per_sec, event.claim_tokens_per_sec) == (2.5, 2.5)
    assert record.data["status"] == "wrong_output"
    assert len(miner.referee.asked) == 1


async def test_referee_that_fails_for_its_own_reasons_is_asked_again(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n")
    miner.referee = ScriptedReferee([report(Status.INFRASTRUCTURE, None), report()])
    await miner.start("optimiser")
    (record,) = await wait_for_candidates(miner, 1)
    assert record.state == "offered"
    assert len(miner.referee.asked) == 2


async def test_candidate_that_could_not_be_measured_may_be_tried_again(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n", "x = 2\n")
    reports = [report(Status.INFRASTRUCTURE, None)] * 3 + [report()]
    miner.referee = ScriptedReferee(reports)
    await miner.start("optimiser")
    (record,) = await wait_for_candidates(miner, 1)
    assert record.data["name"] == "x = 2"
    first = Candidate("again", files("x = 1\n"))
    assert await CandidateLedger(miner.journal).find(first.digest, TARGET) is None


async def test_rounds_end_and_the_component_goes_on(miner: Miner) -> None:
    miner.change(agent_iterations=2)
    miner.proposer = candidates("x = 1\n", "x = 2\n", "x = 3\n")
    miner.referee = ScriptedReferee([report(Status.CRASHED, None)])
    await miner.start("optimiser")
    await wait_for_candidates(miner, 2)

    async def is_idle() -> bool:
        return not miner.tasks[1].done() and len(miner.referee.asked) == 2

    await miner.until(is_idle)
    await miner.until(is_idle)
    assert len(await miner.journal.list("candidate")) == 2
