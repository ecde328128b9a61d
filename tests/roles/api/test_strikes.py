"""Bans by address, and when an outcome counts at all."""

import time
from datetime import datetime, timedelta

import pytest
from sqlalchemy import update

from node.settings_model import Settings
from protocol.verdicts import Fault, LogitOutcome, Status
from roles.api.database import Database, Effect
from roles.api.strikes import ban_end
from roles.api.tables import submissions
from tests.fakes.clock import START
from tests.roles.api.harness import (
    Client,
    Code,
    Key,
    Subnet,
    commit_message,
    reveal_message,
    submit_message,
    url_of,
)

CRASHED = {"status": Status.CRASHED, "fault": Fault.MINER}


@pytest.mark.parametrize(
    ("hours", "end"),
    [
        ([], None),
        ([0, 1, 2, 3], None),
        ([0, 1, 2, 3, 4], 28),
        ([0, 1, 2, 3, 24], 48),
        ([0, 1, 2, 3, 25], None),
        ([0, 1, 2, 3, 4, 10], 34),
        ([0, 20, 21, 22, 23, 30], 54),
    ],
)
def test_five_within_a_day_ban_for_a_day(hours: list[int], end: int | None) -> None:
    moments: list[datetime] = [START + timedelta(hours=hour) for hour in hours]
    assert ban_end(moments) == (None if end is None else START + timedelta(hours=end))


async def failed(api: Client, subnet: Subnet, miner: Key, name: str, judge: Key | None = None) -> None:
    """Submit something, and have it judged as the miner's fault."""
    await api.submit(miner, Code(name))
    lease = await api.lease(judge or subnet.validator)
    assert lease is not None
    assert (await api.judge(judge or subnet.validator, lease, **CRASHED)).status == 200


async def test_five_failures_ban_the_address(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.rival, Code("committed before"))
    for number in range(4):
        await failed(api, subnet, subnet.miner, f"kernel {number}")
    assert (await api.commit(subnet.sibling, Code("still allowed"))).submission_id
    started_s = time.monotonic()
    await failed(api, subnet, subnet.miner, "the fifth")
    for path, message in (
        ("/submit_kernel", submit_message(subnet.rival, Code("direct"))),
        ("/commit_submission", commit_message(subnet.rival, "ab" * 32)),
    ):
        reply = await api.post(path, message)
        assert reply.status == 403
        assert "127.0.0.1" in reply.detail
        assert "24.0 hours" in reply.detail
        assert 86_400 - (time.monotonic() - started_s) <= int(reply.headers["Retry-After"]) <= 86_400
    # What was committed before can be revealed, and asked for again.
    assert await api.commit(subnet.rival, Code("committed before")) == committed
    subnet.chain.advance(100)
    reveal = reveal_message(subnet.rival, committed.submission_id, Code("committed before"))
    assert (await api.post("/reveal_submission", reveal)).status == 200


async def test_a_hotkey_that_has_passed_is_not_stopped(api: Client, subnet: Subnet) -> None:
    await api.submit(subnet.rival, Code("good"))
    lease = await api.lease(subnet.validator)
    assert lease is not None
    await api.judge(subnet.validator, lease)
    for number in range(5):
        await failed(api, subnet, subnet.miner, f"kernel {number}")
    assert (await api.post("/submit_kernel", submit_message(subnet.sibling, Code("x")))).status == 403
    assert (await api.post("/submit_kernel", submit_message(subnet.rival, Code("better")))).status == 200


async def test_a_ban_ends(api: Client, settings: Settings, subnet: Subnet) -> None:
    for number in range(5):
        await failed(api, subnet, subnet.miner, f"kernel {number}")
    database = Database(url_of(settings))
    earlier = datetime.now().astimezone() - timedelta(hours=24, seconds=1)
    await database.write(
        lambda connection: connection.execute(update(submissions).values(settled_at=earlier)),
        effect=Effect.HIDDEN,
    )
    await database.close()
    await api.submit(subnet.sibling, Code("a day later"))


async def test_faults_that_are_not_the_miners_do_not_count(api: Client, subnet: Subnet) -> None:
    for number in range(6):
        await api.submit(subnet.miner, Code(f"kernel {number}"))
        lease = await api.lease(subnet.validator)
        assert lease is not None
        await api.judge(subnet.validator, lease, status=Status.INACCURATE, fault=Fault.NOBODY)
    await api.submit(subnet.sibling, Code("allowed"))


async def test_a_small_stake_cannot_ban(api: Client, subnet: Subnet) -> None:
    """Where two validators of equal stake judge, one alone decides nothing: neither strike nor rank."""
    await api.submit(subnet.sibling, Code("seen by both"))
    for validator in (subnet.validator, subnet.validator2):
        lease = await api.lease(validator)
        assert lease is not None
        await api.judge(validator, lease)
    for number in range(5):
        await failed(api, subnet, subnet.miner, f"kernel {number}")
    assert (await api.post("/submit_kernel", submit_message(subnet.rival, Code("x")))).status == 200
    assert (await api.get("/get_submission_stats")).body["recent_submissions"][1]["status"] == "evaluating"


async def test_ranked_once_a_quorum_has_judged(api: Client, subnet: Subnet) -> None:
    await api.submit(subnet.sibling, Code("seen by both"))
    for validator in (subnet.validator, subnet.validator2):
        lease = await api.lease(validator)
        assert lease is not None
        await api.judge(validator, lease, status=Status.CRASHED, fault=Fault.MINER)
    await api.submit(subnet.miner, Code())
    await api.check_logits(subnet.validator, subnet.miner, LogitOutcome.PASSED)
    first = await api.lease(subnet.validator)
    second = await api.lease(subnet.validator2)
    assert first is not None
    assert second is not None
    await api.judge(subnet.validator, first, measured_tokens_per_sec=1000.0)
    assert (await api.get("/leaderboard")).body["rows"] == []
    await api.judge(subnet.validator2, second, measured_tokens_per_sec=3000.0)
    [row] = (await api.get("/leaderboard")).body["rows"]
    assert row["tokens_per_sec"] == 2000.0


async def test_addresses_are_never_shown(api: Client, subnet: Subnet) -> None:
    await failed(api, subnet, subnet.miner, "kernel")
    for path in ("/submissions/1", "/submissions", "/get_submission_stats", "/leaderboard", "/"):
        assert "127.0.0.1" not in str((await api.get(path)).body), path
