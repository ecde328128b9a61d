"""The evaluation queue: leases, heartbeats, verdicts, and what they do to the standing."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Column, Connection, select, update
from sqlalchemy.util import await_only

from node.settings_model import Settings
from protocol.messages import Heartbeat, LeaseAnswer, SubmissionDetail, Verdict
from protocol.signing import verdict_text, verify_text
from protocol.verdicts import Fault, LogitOutcome, Status
from roles.api import store_submissions
from roles.api.database import Database
from roles.api.tables import Row, leases, verdicts
from tests.roles.api.harness import (
    TARGET,
    Client,
    Code,
    Key,
    Subnet,
    registration,
    reveal_message,
    running,
    stored,
    until,
    url_of,
    verdict_message,
    with_api,
)


async def leased(api: Client, validator: Key) -> LeaseAnswer:
    """A lease that must be there."""
    lease = await api.lease(validator)
    assert lease is not None
    return lease


async def detail(api: Client, submission_id: int) -> SubmissionDetail:
    """GET /submissions/{id}."""
    return SubmissionDetail.model_validate((await api.get(f"/submissions/{submission_id}")).body)


async def test_from_commit_to_leaderboard(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code())
    assert await api.lease(subnet.validator) is None
    subnet.chain.advance(100)
    await api.post("/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code()))
    assert (await detail(api, committed.submission_id)).state == "queued"
    lease = await leased(api, subnet.validator)
    assert lease.submission_id == committed.submission_id
    assert (lease.fork_url, lease.commit_hash) == (Code().url, Code().commit_hash)
    assert lease.target_sequence_length == TARGET
    assert lease.claimed_tokens_per_sec == 1000.0
    assert lease.round_number == 1
    assert (await detail(api, committed.submission_id)).state == "evaluating"
    assert (await api.judge(subnet.validator, lease)).status == 200
    judged = await detail(api, committed.submission_id)
    assert judged.state == "judged"
    assert judged.rank is None
    assert (await api.get("/leaderboard")).body["rows"] == []
    assert (await api.check_logits(subnet.validator, subnet.miner, LogitOutcome.PASSED)).body == {
        "miner_hotkey": subnet.miner.ss58_address,
        "outcome": "passed",
    }
    [row] = (await api.get("/leaderboard")).body["rows"]
    assert row["place"] == 1
    assert row["submission_id"] == committed.submission_id
    assert row["tokens_per_sec"] == 1200.0
    assert row["weighted_score"] == 3600.0
    assert row["share"] == 0.6
    assert (await detail(api, committed.submission_id)).rank == 1
    assert await api.lease(subnet.validator) is None


async def test_code_is_hidden_until_a_verdict(api: Client, subnet: Subnet) -> None:
    submitted = await api.submit(subnet.miner, Code())
    paths = (
        f"/submissions/{submitted.submission_id}",
        f"/submissions?hotkey={subnet.miner.ss58_address}",
        "/submissions",
        "/get_submission_stats",
        "/pending_reveals",
        "/leaderboard",
        "/",
    )
    lease = await leased(api, subnet.validator)
    for path in paths:
        text = str((await api.get(path)).body)
        assert Code().url not in text, path
        assert Code().commit_hash not in text, path
    await api.judge(subnet.validator, lease)
    shown = await detail(api, submitted.submission_id)
    assert (shown.fork_url, shown.commit_hash) == (Code().url, Code().commit_hash)
    [summary] = (await api.get("/get_submission_stats")).body["recent_submissions"]
    assert summary["commit_hash"] == Code().commit_hash


async def test_salt_is_never_shown(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code())
    subnet.chain.advance(100)
    await api.post("/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code()))
    await api.judge(subnet.validator, await leased(api, subnet.validator))
    for path in (f"/submissions/{committed.submission_id}", "/submissions", "/get_submission_stats"):
        assert Code().salt not in str((await api.get(path)).body)


async def test_verdict_is_shown_as_it_was_signed(api: Client, subnet: Subnet) -> None:
    submitted = await api.submit(subnet.miner, Code())
    lease = await leased(api, subnet.validator)
    evidence = {"seeds": [1, 2], "deep": {"x": 0.1}}
    message = verdict_message(subnet.validator, lease, evidence=evidence, fingerprint="f")
    path = f"/evaluations/{submitted.submission_id}/verdict"
    assert (await api.post(path, message, subnet.validator)).body == {
        "submission_id": submitted.submission_id,
        "status": "passed",
    }
    [stored] = (await detail(api, submitted.submission_id)).verdicts
    fields = stored.model_dump(exclude={"created_at"})
    shown = Verdict.model_validate({**fields, "submission_id": submitted.submission_id})
    verify_text(stored.validator_hotkey, verdict_text(shown), stored.signature)
    # The answer was lost: the same verdict again is not a second one, another one is refused.
    assert (await api.post(path, message, subnet.validator)).status == 200
    other = verdict_message(subnet.validator, lease, status=Status.CRASHED, fault=Fault.MINER)
    assert (await api.post(path, other, subnet.validator)).status == 409
    assert len((await detail(api, submitted.submission_id)).verdicts) == 1


async def test_validators_judge_independently(api: Client, subnet: Subnet) -> None:
    submitted = await api.submit(subnet.miner, Code())
    first = await leased(api, subnet.validator)
    second = await leased(api, subnet.validator2)
    assert first.submission_id == second.submission_id == submitted.submission_id
    assert first.lease_id != second.lease_id
    await api.judge(subnet.validator, first, measured_tokens_per_sec=1000.0)
    await api.judge(subnet.validator2, second, measured_tokens_per_sec=2000.0)
    await api.check_logits(subnet.validator, subnet.miner, LogitOutcome.PASSED)
    [row] = (await api.get("/leaderboard")).body["rows"]
    assert row["tokens_per_sec"] == 1500.0
    assert len((await detail(api, submitted.submission_id)).verdicts) == 2
    assert await api.lease(subnet.validator) is None
    assert await api.lease(subnet.validator2) is None


async def test_a_tie_between_validators_does_not_rank(api: Client, subnet: Subnet) -> None:
    submitted = await api.submit(subnet.miner, Code())
    await api.check_logits(subnet.validator, subnet.miner, LogitOutcome.PASSED)
    await api.judge(subnet.validator, await leased(api, subnet.validator))
    assert len((await api.get("/leaderboard")).body["rows"]) == 1
    wrong: dict[str, Any] = {"status": Status.WRONG_OUTPUT, "fault": Fault.MINER}
    await api.judge(subnet.validator2, await leased(api, subnet.validator2), **wrong)
    assert (await api.get("/leaderboard")).body["rows"] == []
    [summary] = (await api.get("/get_submission_stats")).body["recent_submissions"]
    assert summary["status"] == "wrong_output"
    assert (await detail(api, submitted.submission_id)).rank is None


async def test_logits_decide_who_is_ranked(api: Client, subnet: Subnet) -> None:
    await api.submit(subnet.miner, Code())
    await api.judge(subnet.validator, await leased(api, subnet.validator))
    for outcome, ranked in (
        (LogitOutcome.PENDING, 0),
        (LogitOutcome.PASSED, 1),
        (LogitOutcome.FAILED, 0),
        (LogitOutcome.PASSED, 1),
    ):
        assert (await api.check_logits(subnet.validator, subnet.miner, outcome)).status == 200
        assert len((await api.get("/leaderboard")).body["rows"]) == ranked
        [entry] = (await api.get("/verifications")).body
        assert entry["outcome"] == outcome
    # A second validator that disagrees makes it undecided.
    await api.check_logits(subnet.validator2, subnet.miner, LogitOutcome.FAILED)
    [entry] = (await api.get("/verifications")).body
    assert (entry["outcome"], entry["validators"]) == ("pending", 2)
    assert (await api.get("/leaderboard")).body["rows"] == []


async def test_miner_that_left_the_subnet_is_not_ranked(api: Client, subnet: Subnet) -> None:
    await api.submit(subnet.miner, Code())
    await api.submit(subnet.rival, Code())
    lease = await leased(api, subnet.validator)
    await api.judge(subnet.validator, lease)
    await api.check_logits(subnet.validator, subnet.miner, LogitOutcome.PASSED)
    assert len((await api.get("/leaderboard")).body["rows"]) == 1
    state = subnet.chain.state()
    for name in ("miner", "rival"):
        neuron = state.neuron(getattr(subnet, name).ss58_address)
        assert neuron is not None
        subnet.chain.register(registration(f"new-{name}", "cold-n"), replace_uid=neuron.uid)
    await asyncio.sleep(0.3)
    # Reading the queue refreshes the metagraph; the rival's submission is offered to nobody any more.
    assert await api.lease(subnet.validator) is None
    await until(lambda: _is_empty(api))


async def _is_empty(api: Client) -> Any:
    return (await api.get("/leaderboard")).body["rows"] == []


async def test_coldkeys_take_turns(api: Client, subnet: Subnet) -> None:
    """Two hotkeys of one coldkey, with submissions made first, do not keep the other coldkey waiting."""
    owners = {}
    for miner, name in ((subnet.miner, "a"), (subnet.sibling, "b"), (subnet.rival, "c")):
        owners[(await api.submit(miner, Code(name))).submission_id] = name
    order = [owners[(await leased(api, subnet.validator)).submission_id] for _ in range(3)]
    assert order == ["a", "c", "b"]


async def make_older(settings: Settings, column: Column[Any], time: timedelta) -> None:
    """Set a time of a table's only row so much further back."""
    database = Database(url_of(settings))
    try:
        [(was,)] = await stored(settings, select(column))
        older = update(column.table).values({column: was - time})
        await database.write(lambda connection: connection.execute(older))
    finally:
        await database.close()


async def test_lease_that_is_not_renewed_returns_to_the_queue(settings: Settings, subnet: Subnet) -> None:
    async with running(settings) as api:
        submitted = await api.submit(subnet.miner, Code())
        lost = await leased(api, subnet.validator)
        assert await api.lease(subnet.validator) is None
        await make_older(settings, leases.c.expires_at, timedelta(seconds=settings.api.lease_s))
        again = await leased(api, subnet.validator)
        assert again.submission_id == submitted.submission_id
        assert again.lease_id != lost.lease_id
        stale = await api.judge(subnet.validator, lost)
        assert stale.status == 409
        assert lost.lease_id in stale.detail
        assert (await api.judge(subnet.validator, again)).status == 200


async def test_heartbeats_keep_a_lease(settings: Settings, subnet: Subnet) -> None:
    async with running(settings) as api:
        await api.submit(subnet.miner, Code())
        lease = await leased(api, subnet.validator)
        path = f"/evaluations/{lease.submission_id}/heartbeat"
        expiries = [lease.expires_at.isoformat()]
        for _ in range(4):
            # Without the heartbeats the second time would be the end of it.
            await make_older(settings, leases.c.expires_at, 0.75 * timedelta(seconds=settings.api.lease_s))
            reply = await api.post(path, Heartbeat(lease_id=lease.lease_id), subnet.validator)
            assert reply.status == 200
            expiries.append(reply.body["expires_at"])
            assert await api.lease(subnet.validator) is None
        assert len(set(expiries)) == len(expiries)
        assert (await api.judge(subnet.validator, lease)).status == 200
        ended = await api.post(path, Heartbeat(lease_id=lease.lease_id), subnet.validator)
        assert ended.status == 409


async def test_late_verdict_counts_while_nobody_leased_again(settings: Settings, subnet: Subnet) -> None:
    async with running(settings) as api:
        await api.submit(subnet.miner, Code())
        lease = await leased(api, subnet.validator)
        await make_older(settings, leases.c.expires_at, timedelta(seconds=settings.api.lease_s))
        assert (await api.judge(subnet.validator, lease)).status == 200


BROKEN: dict[str, Any] = {
    "status": Status.INFRASTRUCTURE,
    "fault": Fault.INFRASTRUCTURE,
    "measured_tokens_per_sec": None,
    "evidence": {"reason": f"could not fetch {Code().url}"},
}


async def test_infrastructure_faults_are_tried_again_twice_and_not_at_once(
    settings: Settings, subnet: Subnet
) -> None:
    async with running(settings) as api:
        submitted = await api.submit(subnet.miner, Code())
        for attempt, delay in ((1, timedelta(minutes=10)), (2, timedelta(hours=2)), (3, timedelta(days=9))):
            lease = await leased(api, subnet.validator)
            assert (await api.judge(subnet.validator, lease, **BROKEN)).status == 200
            shown = await detail(api, submitted.submission_id)
            assert shown.state == ("judged" if attempt == 3 else "queued")
            assert (Code().url in shown.model_dump_json()) == (attempt == 3)
            await make_older(settings, verdicts.c.created_at, delay - timedelta(minutes=1))
            assert await api.lease(subnet.validator) is None
            await make_older(settings, verdicts.c.created_at, timedelta(minutes=1))
        assert await api.lease(subnet.validator) is None


async def test_a_submission_that_is_tried_again_later_keeps_nobody_waiting(
    settings: Settings, subnet: Subnet
) -> None:
    """Other submissions come next, other validators judge it at once, and a restart forgets nothing."""
    async with running(settings) as api:
        submitted = await api.submit(subnet.miner, Code())
        await api.judge(subnet.validator, await leased(api, subnet.validator), **BROKEN)
        other = await api.submit(subnet.rival, Code("other", owner="rival"))
        lease = await leased(api, subnet.validator)
        assert lease.submission_id == other.submission_id
        assert (await leased(api, subnet.validator2)).submission_id == submitted.submission_id
        await api.judge(subnet.validator, lease)
    async with running(settings) as api:
        assert await api.lease(subnet.validator) is None


async def test_infrastructure_fault_is_replaced_by_the_retry(settings: Settings, subnet: Subnet) -> None:
    async with running(with_api(settings, infrastructure_retry_s=0.1)) as api:
        submitted = await api.submit(subnet.miner, Code())
        await api.judge(subnet.validator, await leased(api, subnet.validator), **BROKEN)
        again = await until(lambda: api.lease(subnet.validator))
        await api.judge(subnet.validator, again)
        [verdict] = (await detail(api, submitted.submission_id)).verdicts
        assert verdict.status is Status.PASSED


async def test_next_direct_submission_after_the_verdict(api: Client, subnet: Subnet) -> None:
    await api.submit(subnet.miner, Code("one"))
    wrong: dict[str, Any] = {"status": Status.WRONG_OUTPUT, "fault": Fault.MINER}
    await api.judge(subnet.validator, await leased(api, subnet.validator), **wrong)
    await api.submit(subnet.miner, Code("two"))


async def test_verdict_under_a_lease_of_somebody_else(api: Client, subnet: Subnet) -> None:
    submitted = await api.submit(subnet.miner, Code())
    lease = await leased(api, subnet.validator)
    message = verdict_message(subnet.validator2, lease)
    path = f"/evaluations/{submitted.submission_id}/verdict"
    assert (await api.post(path, message, subnet.validator2)).status == 403
    heartbeat = Heartbeat(lease_id=lease.lease_id)
    beat = f"/evaluations/{submitted.submission_id}/heartbeat"
    assert (await api.post(beat, heartbeat, subnet.validator2)).status == 403
    # Somebody else's verdict carried by an own request.
    assert (await api.post(path, verdict_message(subnet.validator, lease), subnet.validator2)).status == 403


async def test_verdict_with_a_foreign_signature(api: Client, subnet: Subnet) -> None:
    submitted = await api.submit(subnet.miner, Code())
    lease = await leased(api, subnet.validator)
    message = verdict_message(subnet.validator, lease)
    forged = message.model_copy(update={"measured_tokens_per_sec": 9e9})
    reply = await api.post(f"/evaluations/{submitted.submission_id}/verdict", forged, subnet.validator)
    assert reply.status == 401
    assert (await detail(api, submitted.submission_id)).verdicts == []


@pytest.mark.parametrize("number", ["77", "9223372036854775807", "9223372036854775808", "1" * 40])
async def test_submission_that_does_not_exist(api: Client, subnet: Subnet, number: str) -> None:
    assert (await api.get(f"/submissions/{number}")).status == 404
    reply = await api.post(f"/evaluations/{number}/heartbeat", Heartbeat(lease_id="none"), subnet.validator)
    assert reply.status == 404


async def test_lease_that_does_not_exist(api: Client, subnet: Subnet) -> None:
    submitted = await api.submit(subnet.miner, Code())
    path = f"/evaluations/{submitted.submission_id}/heartbeat"
    reply = await api.post(path, Heartbeat(lease_id="none"), subnet.validator)
    assert reply.status == 404
    assert "none" in reply.detail


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"rules_version": 99}, "rules_version"),
        ({"measured_tokens_per_sec": None}, "measured_tokens_per_sec"),
        ({"measured_tokens_per_sec": -1.0}, "measured_tokens_per_sec"),
        ({"submission_id": 4711}, "submission_id"),
    ],
)
async def test_verdict_with_a_wrong_field(
    api: Client, subnet: Subnet, changes: dict[str, Any], field: str
) -> None:
    submitted = await api.submit(subnet.miner, Code())
    lease = await leased(api, subnet.validator)
    message = verdict_message(subnet.validator, lease, **changes)
    reply = await api.post(f"/evaluations/{submitted.submission_id}/verdict", message, subnet.validator)
    assert reply.status == 422
    assert [problem["field"] for problem in reply.detail] == [field]


async def test_verdict_with_nan_inside_the_evidence(api: Client, subnet: Subnet) -> None:
    submitted = await api.submit(subnet.miner, Code())
    lease = await leased(api, subnet.validator)
    body = verdict_message(subnet.validator, lease, evidence={"times": [1.0, 2.5]}).model_dump_json()
    for literal in ("NaN", "Infinity", "1e999"):
        sent = body.replace("2.5", literal).encode()
        reply = await api.post(f"/evaluations/{submitted.submission_id}/verdict", sent, subnet.validator)
        assert reply.status == 422, literal
        assert reply.detail[0]["field"] == "evidence.times.1"
    assert (await detail(api, submitted.submission_id)).verdicts == []


async def test_a_verdict_that_arrives_while_its_submission_is_read(
    api: Client, subnet: Subnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader sees the submission before the verdict or after it, not a verdict whose evidence is hidden."""
    await api.submit(subnet.miner, Code())
    lease = await leased(api, subnet.validator)
    find = store_submissions.list_by_id

    loop = asyncio.get_running_loop()

    def find_slowly(connection: Connection, numbers: Sequence[int]) -> Sequence[Row]:
        rows = find(connection, numbers)
        monkeypatch.setattr(store_submissions, "list_by_id", find)
        judging = api.judge(subnet.validator, lease)
        if connection.dialect.is_async:
            reply = await_only(judging)
        else:
            reply = asyncio.run_coroutine_threadsafe(judging, loop).result(timeout=60)
        assert reply.status == 200
        return rows

    monkeypatch.setattr(store_submissions, "list_by_id", find_slowly)
    path = f"/submissions/{lease.submission_id}"
    assert (await api.get(path)).body["verdicts"] == []
    (verdict,) = (await api.get(path)).body["verdicts"]
    assert verdict["evidence"]


async def test_a_large_standing_is_computed_behind_the_readers_back(
    api: Client, subnet: Subnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many entries readers get the last standing at once, and soon the next."""
    monkeypatch.setattr("roles.api.standing.LARGE", 0)
    for miner in (subnet.miner, subnet.rival):
        await api.check_logits(subnet.validator, miner, LogitOutcome.PASSED)
    await api.submit(subnet.miner, Code())
    assert (await api.judge(subnet.validator, await leased(api, subnet.validator))).status == 200
    assert len((await api.get("/leaderboard")).body["rows"]) == 1
    await api.submit(subnet.rival, Code())
    assert (await api.judge(subnet.validator, await leased(api, subnet.validator))).status == 200

    async def both() -> bool:
        return len((await api.get("/leaderboard")).body["rows"]) == 2

    assert await until(both)


async def test_a_copy_that_was_judged_before_its_original_is_not_ranked(api: Client, subnet: Subnet) -> None:
    original = await api.submit(subnet.miner, Code("original"))
    copy = await api.submit(subnet.rival, Code("copy", owner="rival"))
    leases = [await leased(api, subnet.validator), await leased(api, subnet.validator)]
    held = {lease.submission_id: lease for lease in leases}
    for miner in (subnet.miner, subnet.rival):
        await api.check_logits(subnet.validator, miner, LogitOutcome.PASSED)

    async def ranked_after(submission_id: int, **figures: Any) -> list[int]:
        reply = await api.judge(subnet.validator, held[submission_id], **figures)
        assert reply.status == 200, reply
        return [row["submission_id"] for row in (await api.get("/leaderboard")).body["rows"]]

    assert await ranked_after(copy.submission_id, fingerprint="f") == [copy.submission_id]
    # Whoever had the code first need not have passed.
    slow = {"status": Status.BELOW_CLAIM, "fault": Fault.NOBODY, "measured_tokens_per_sec": 1.0}
    assert await ranked_after(original.submission_id, fingerprint="f", **slow) == []
    again = await api.submit(subnet.miner, Code("again"))
    held[again.submission_id] = await leased(api, subnet.validator)
    assert await ranked_after(again.submission_id, fingerprint="f") == [again.submission_id]
