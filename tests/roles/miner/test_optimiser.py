"""The optimisation loop: what is measured, what is handed over, and what a restart does not repeat."""

import asyncio

import pytest

from protocol.events import CandidateVerified
from protocol.messages import DirectorySource
from protocol.verdicts import Status
from roles.miner.candidate import Candidate, Unusable
from roles.miner.history import Entry, Phase
from roles.miner.ledger import Stage
from tests.roles.miner.harness import TARGET, ListProposer, Miner, ScriptedReferee, files, report


def candidates(*texts: str) -> ListProposer:
    """A proposer of one candidate for each text."""
    return ListProposer(*(Candidate(text.strip(), files(text)) for text in texts))


async def wait_for_candidates(miner: Miner, count: int, *phases: Phase) -> list[Entry]:
    """Wait until that many candidates are in one of the phases: measured, or handed over."""
    wanted = phases or (Phase.FAILED, Phase.READY, Phase.OFFERED)

    async def found() -> list[Entry] | None:
        entries = await miner.history.entries(*wanted)
        return entries if len(entries) >= count else None

    return list(await miner.until(found))


async def handed_over(miner: Miner) -> CandidateVerified:
    """The one event, which follows what the history says."""

    async def found() -> list[CandidateVerified] | None:
        return miner.recorder.of(CandidateVerified) or None

    (event,) = await miner.until(found)
    return event


async def test_passed_candidate_is_measured_committed_and_handed_over(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n")
    await miner.start("optimiser", "submitter")
    (record,) = await wait_for_candidates(miner, 1, Phase.OFFERED)
    (asked,) = miner.referee.asked
    assert isinstance(asked["source"], DirectorySource)
    assert asked["files"] == files("x = 1\n")
    assert (asked["target"], asked["claim"]) == (TARGET, None)
    event = await handed_over(miner)
    assert event.tokens_per_sec == 1000.0
    assert event.claim_tokens_per_sec == pytest.approx(950.0)
    assert event.fork_url == miner.fork.url
    assert record.offer is not None
    assert record.offer["commit_hash"] == event.commit_hash
    assert record.figures is not None
    assert record.figures["gpu"] == "cpu"
    assert record.decision == "submitted: nothing of this miner is live"


@pytest.mark.parametrize("status", [Status.WRONG_OUTPUT, Status.IMPORTS_MISSING, Status.CRASHED])
async def test_failed_candidate_is_kept_as_history_and_not_handed_over(miner: Miner, status: Status) -> None:
    miner.proposer = candidates("x = 1\n")
    miner.referee = ScriptedReferee([report(status, None)])
    await miner.start("optimiser", "submitter")
    (record,) = await wait_for_candidates(miner, 1)
    assert record.phase is Phase.FAILED
    assert (record.status, record.reason) == (status.value, f"scripted {status.value}")
    assert miner.recorder.of(CandidateVerified) == []


async def test_only_what_beats_the_last_submission_by_the_margin_is_handed_over(
    miner: Miner,
) -> None:
    miner.change(submit_margin=0.1)
    miner.proposer = candidates("x = 1\n", "x = 2\n", "x = 3\n")
    speeds = (1000.0, 1099.0, 1101.0)
    miner.referee = ScriptedReferee([report(tokens_per_sec=speed) for speed in speeds])
    await miner.start("submitter", "coordinator", "follower")
    await miner.offer("x = 0\n")
    committed = await miner.until_stage(Stage.COMMITTED)
    miner.run("optimiser")
    ready = await wait_for_candidates(miner, 3)
    assert len(ready) == 3

    async def are_decided() -> bool:
        first, second, third = [entry.decision for entry in await miner.history.entries()]
        return (
            third.startswith("waits: submission 1 (commit ")
            and second == "kept: candidate 3 scores more"
            and first.endswith("scores more")
        )

    await miner.until(are_decided)
    await miner.ledger.advance(committed, Stage.JUDGED, verdict="passed")
    (offered,) = await wait_for_candidates(miner, 1, Phase.OFFERED)
    assert offered.tokens_per_sec == 1101.0
    assert "+10.1% against submission 1" in offered.decision
    assert "more than 10.0%" in offered.decision


async def test_submission_that_failed_is_not_the_one_to_beat(miner: Miner) -> None:
    miner.proposer = candidates("x = 2\n")
    miner.referee = ScriptedReferee([report(tokens_per_sec=10.0)])
    await miner.start("coordinator")
    await miner.offer("x = 1\n")
    committed = await miner.until_stage(Stage.COMMITTED)
    await miner.ledger.advance(committed, Stage.JUDGED, verdict="wrong_output")
    miner.run("optimiser", "submitter")
    records = await wait_for_candidates(miner, 1)
    assert [record.tokens_per_sec for record in records] == [10.0]
    await wait_for_candidates(miner, 1, Phase.OFFERED)


async def test_restart_measures_and_submits_nothing_again(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n", "x = 2\n")
    miner.referee = ScriptedReferee([report(), report(Status.WRONG_OUTPUT, None)])
    await miner.start("optimiser", "submitter", "coordinator")
    await wait_for_candidates(miner, 2)
    submission = await miner.until_stage(Stage.COMMITTED)
    await miner.kill()

    miner.proposer = candidates("x = 1\n", "x = 2\n", "x = 3\n")
    miner.referee = ScriptedReferee([report(tokens_per_sec=1.0)])
    await miner.start("optimiser", "submitter", "coordinator")
    await wait_for_candidates(miner, 3)
    assert [asked["files"]["chunk.py"] for asked in miner.referee.asked] == ["x = 3\n"]
    assert [one.key for one in await miner.ledger.all()] == [submission.key]
    assert miner.recorder.of(CandidateVerified) == []


async def test_candidate_that_a_crash_kept_from_becoming_a_submission_is_handed_over_again(
    miner: Miner,
) -> None:
    miner.proposer = candidates("x = 1\n")
    await miner.start("optimiser", "submitter")
    (record,) = await wait_for_candidates(miner, 1, Phase.OFFERED)
    await miner.kill()
    assert record.offer is not None

    miner.proposer = candidates()
    await miner.start("optimiser", "submitter", "coordinator")
    submission = await miner.until_stage(Stage.COMMITTED)
    assert submission.commit_hash == record.offer["commit_hash"]
    assert len(miner.referee.asked) == 1


async def test_candidate_whose_commitment_expired_is_handed_over_at_the_next_start(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n")
    await miner.start("optimiser", "submitter", "coordinator")
    first = await miner.until_stage(Stage.COMMITTED)
    await miner.kill()
    miner.subnet.chain.advance(40)
    await miner.start("coordinator")
    await miner.until_stage(Stage.EXPIRED)
    await miner.kill()

    await miner.start("optimiser", "submitter", "coordinator")
    again = await miner.until_stage(Stage.EXPIRED, Stage.COMMITTED, count=2)
    assert again.stage is Stage.COMMITTED
    assert again.commit_hash == first.commit_hash
    assert again.key != first.key


async def test_unverified_submission_goes_out_whatever_the_referee_says(miner: Miner) -> None:
    miner.change(verify_before_submit=False, unverified_claim_tokens_per_sec=2.5)
    miner.proposer = candidates("x = 1\n")
    miner.referee = ScriptedReferee([report(Status.WRONG_OUTPUT, None)])
    await miner.start("optimiser", "submitter")
    (record,) = await wait_for_candidates(miner, 1, Phase.OFFERED)
    event = await handed_over(miner)
    assert (event.tokens_per_sec, event.claim_tokens_per_sec) == (2.5, 2.5)
    assert record.status == "wrong_output"
    assert len(miner.referee.asked) == 1


async def test_unverified_candidates_that_have_to_wait_go_in_their_order(miner: Miner) -> None:
    miner.change(verify_before_submit=False)
    miner.proposer = candidates("x = 1\n", "x = 2\n")
    miner.referee = ScriptedReferee([report(Status.WRONG_OUTPUT, None)] * 2)
    await miner.start("submitter", "coordinator", "follower")
    await miner.offer("x = 0\n")
    await miner.until_stage(Stage.COMMITTED)
    miner.run("optimiser")
    first, _ = await wait_for_candidates(miner, 2)

    async def are_decided() -> bool:
        one, two = [entry.decision for entry in await miner.history.entries()]
        return one.startswith("waits: ") and two == f"kept: candidate {first.number} comes first"

    await miner.until(are_decided)


async def test_referee_that_fails_for_its_own_reasons_is_asked_again(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n")
    miner.referee = ScriptedReferee([report(Status.INFRASTRUCTURE, None), report()])
    await miner.start("optimiser", "submitter")
    (record,) = await wait_for_candidates(miner, 1)
    assert record.status == "passed"
    assert len(miner.referee.asked) == 2


async def test_candidate_that_could_not_be_measured_may_be_tried_again(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n", "x = 2\n")
    reports = [report(Status.INFRASTRUCTURE, None)] * 3 + [report()]
    miner.referee = ScriptedReferee(reports)
    await miner.start("optimiser", "submitter")
    (record,) = await wait_for_candidates(miner, 1)
    assert record.name == "x = 2"
    await miner.kill()

    miner.proposer = candidates()
    miner.referee = ScriptedReferee([report(tokens_per_sec=7.0)])
    await miner.start("optimiser")
    first, second = await wait_for_candidates(miner, 2)
    assert (first.name, first.tokens_per_sec, second.name) == ("x = 1", 7.0, "x = 2")


async def test_rounds_end_and_the_component_goes_on(miner: Miner) -> None:
    miner.change(agent_iterations=2)
    miner.proposer = candidates("x = 1\n", "x = 2\n", "x = 3\n")
    miner.referee = ScriptedReferee([report(Status.CRASHED, None)])
    await miner.start("optimiser", "submitter")
    await wait_for_candidates(miner, 2)

    async def is_idle() -> bool:
        return not miner.tasks[1].done() and len(miner.referee.asked) == 2

    await miner.until(is_idle)
    await miner.until(is_idle)
    assert len(await miner.history.entries()) == 2


async def test_rounds_are_counted_on_after_a_kill_and_begin_anew_when_all_are_done(miner: Miner) -> None:
    miner.change(agent_iterations=2)
    miner.referee = ScriptedReferee([report(Status.CRASHED, None)])
    for number in (1, 2):
        miner.proposer = candidates(f"x = {number}\n")
        await miner.start("optimiser")
        await wait_for_candidates(miner, number)

        async def is_counted(number: int = number) -> bool:
            return await miner.history.fact("rounds") == number

        await miner.until(is_counted)
        await miner.kill()
    miner.proposer = candidates("x = 3\n", "x = 4\n", "x = 5\n")
    await miner.start("optimiser")
    await wait_for_candidates(miner, 4)

    async def is_finished() -> bool:
        return (await miner.optimiser.describe())["doing"] == "finished"

    await miner.until(is_finished)
    assert len(await miner.history.entries()) == 4


async def test_measurement_that_a_kill_cut_off_is_taken_up_without_the_proposer(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n")
    miner.referee = ScriptedReferee(hold=asyncio.Event())
    await miner.start("optimiser")

    async def is_measuring() -> bool:
        return len(miner.referee.asked) == 1

    await miner.until(is_measuring)
    (entry,) = await miner.history.entries()
    assert entry.phase is Phase.PROPOSED
    await miner.kill()

    miner.proposer = candidates()
    miner.referee = ScriptedReferee()
    await miner.start("optimiser")
    (again,) = await wait_for_candidates(miner, 1)
    assert (again.number, again.status) == (entry.number, "passed")
    assert miner.referee.asked[0]["files"] == files("x = 1\n")


async def test_last_round_that_a_kill_cut_off_is_the_last(miner: Miner) -> None:
    miner.change(agent_iterations=1)
    miner.proposer = candidates("x = 1\n")
    miner.referee = ScriptedReferee(hold=asyncio.Event())
    await miner.start("optimiser")

    async def is_measuring() -> bool:
        return len(miner.referee.asked) == 1

    await miner.until(is_measuring)
    await miner.kill()
    miner.proposer = candidates("x = 2\n")
    miner.referee = ScriptedReferee()
    await miner.start("optimiser")

    async def is_finished() -> bool:
        return (await miner.optimiser.describe())["doing"] == "finished"

    await miner.until(is_finished)
    assert [entry.name for entry in await miner.history.entries()] == ["x = 1"]


async def test_what_could_not_be_used_is_in_the_history(miner: Miner) -> None:
    refused = Unusable("answer", "the answer holds no file", "agent", note="hello")
    miner.proposer = ListProposer(refused, Candidate("x = 1", files(), parent=1))
    await miner.start("optimiser")
    (measured,) = await wait_for_candidates(miner, 1)
    (entry,) = await miner.history.entries(Phase.REFUSED)
    assert (entry.reason, entry.note, entry.proposer) == (refused.reason, "hello", "agent")
    assert measured.parent == entry.number
    assert await miner.history.files(measured.number) == files()


async def test_candidate_knows_the_one_before_it(miner: Miner) -> None:
    miner.proposer = candidates("x = 1\n", "x = 2\n")
    await miner.start("optimiser")
    first, second = await wait_for_candidates(miner, 2)
    assert (first.parent, second.parent) == (None, first.number)
