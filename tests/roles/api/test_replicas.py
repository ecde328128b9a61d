"""Two replicas on one PostgreSQL: whatever they race for, one wins, and both say the same."""

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import func, select

from node.settings_model import Settings
from protocol.commitments import seed_commitment_hash
from protocol.verdicts import LogitOutcome
from roles.api.database import Database, database_url
from roles.api.schema import HEAD, revision_of, upgrade
from roles.api.tables import leases, rounds, submissions, verdicts
from tests.roles.api.harness import (
    SALT,
    Client,
    Code,
    Subnet,
    commit_message,
    reveal_message,
    running,
    stored,
    submit_message,
    until,
    verdict_message,
    with_api,
)
from tests.roles.postgres import PostgresServer

Replicas = tuple[Client, Client]


@pytest.fixture
async def replicas(replicated: Settings) -> AsyncIterator[Replicas]:
    """Two running APIs with one database and one hotkey."""
    async with running(replicated) as first, running(replicated) as second:
        yield first, second


async def test_the_same_reveal_to_both(replicas: Replicas, replicated: Settings, subnet: Subnet) -> None:
    first, _ = replicas
    numbers = [(await first.commit(subnet.miner, Code(f"kernel {n}"))).submission_id for n in range(5)]
    subnet.chain.advance(100)
    replies = await asyncio.gather(
        *(
            api.post("/reveal_submission", reveal_message(subnet.miner, number, Code(f"kernel {n}")))
            for n, number in enumerate(numbers)
            for api in replicas * 3
        )
    )
    assert [reply.status for reply in replies] == [200] * 30
    assert await stored(replicated, select(func.count()).select_from(submissions)) == [(5,)]


async def test_two_reveals_of_one_commitment(replicas: Replicas, subnet: Subnet) -> None:
    """A seed-form commitment fixes only the URL: two commits fit it, and the first one taken stays."""
    first, second = replicas
    url = Code().url
    committed = await first.post(
        "/commit_submission", commit_message(subnet.miner, seed_commitment_hash(SALT, url))
    )
    number = committed.body["submission_id"]
    subnet.chain.advance(100)
    replies = await asyncio.gather(
        first.post("/reveal_submission", reveal_message(subnet.miner, number, Code("one"))),
        second.post("/reveal_submission", reveal_message(subnet.miner, number, Code("other"))),
    )
    assert sorted(reply.status for reply in replies) == [200, 409]


async def test_one_queued_submission_a_hotkey(replicas: Replicas, subnet: Subnet) -> None:
    replies = await asyncio.gather(
        *(
            api.post("/submit_kernel", submit_message(subnet.miner, Code(f"kernel {n} {index}")))
            for n in range(5)
            for index, api in enumerate(replicas)
        )
    )
    assert sorted(reply.status for reply in replies) == [200] + [409] * 9


async def test_one_lease_for_a_submission(replicas: Replicas, replicated: Settings, subnet: Subnet) -> None:
    """Several workers of one validator, at both replicas, never get the same submission."""
    first, _ = replicas
    for miner in (subnet.miner, subnet.sibling, subnet.rival):
        await first.submit(miner, Code())
    taken = await asyncio.gather(*(api.lease(subnet.validator) for api in replicas for _ in range(4)))
    numbers = [lease.submission_id for lease in taken if lease is not None]
    assert sorted(numbers) == [1, 2, 3]
    assert len(await stored(replicated, select(leases.c.id))) == 3


async def test_one_verdict_for_a_lease(replicas: Replicas, replicated: Settings, subnet: Subnet) -> None:
    first, _ = replicas
    await first.submit(subnet.miner, Code())
    lease = await first.lease(subnet.validator)
    assert lease is not None
    message = verdict_message(subnet.validator, lease)
    path = f"/evaluations/{lease.submission_id}/verdict"
    replies = await asyncio.gather(*(api.post(path, message, subnet.validator) for api in replicas * 3))
    assert [reply.status for reply in replies] == [200] * 6
    assert len(await stored(replicated, select(verdicts.c.id))) == 1


async def test_a_nonce_works_once(replicas: Replicas, subnet: Subnet) -> None:
    first, _ = replicas
    for _ in range(5):
        headers = first.signature(subnet.validator, "POST", "/evaluations/lease", b"")
        replies = await asyncio.gather(
            *(api.send("POST", "/evaluations/lease", b"", headers) for api in replicas * 2)
        )
        assert sorted(reply.status for reply in replies) == [204, 401, 401, 401]


async def test_limits_are_shared(replicated: Settings, subnet: Subnet) -> None:
    limited = with_api(replicated, writes_per_minute_per_hotkey=4)
    async with running(limited) as first, running(limited) as second:
        replies = await asyncio.gather(
            *(
                api.post("/commit_submission", commit_message(subnet.miner, f"{n}{index}" * 32))
                for n in range(1, 6)
                for index, api in enumerate((first, second))
            )
        )
    assert sorted(reply.status for reply in replies) == [200] * 4 + [429] * 6
    assert all("Retry-After" in reply.headers for reply in replies if reply.status == 429)


async def test_rounds_close_once(replicated: Settings) -> None:
    short = with_api(replicated, round_s=0.25)
    async with running(short) as first, running(short) as second:
        for _ in range(15):
            bodies = await asyncio.gather(*(api.get("/get_current_round") for api in (first, second) * 4))
            assert all(reply.status == 200 for reply in bodies)
            await asyncio.sleep(0.1)
    found = await stored(replicated, select(rounds).order_by(rounds.c.round_number))
    assert len(found) >= 4
    assert [row.round_number for row in found] == list(range(1, len(found) + 1))
    assert [row.status for row in found[:-1]] == ["closed"] * (len(found) - 1)
    for before, after in pairwise(found):
        assert before.end_time <= after.start_time


async def test_what_one_takes_the_other_shows(replicas: Replicas, subnet: Subnet) -> None:
    first, second = replicas
    await first.submit(subnet.miner, Code())
    lease = await second.lease(subnet.validator)
    assert lease is not None
    await first.judge(subnet.validator, lease)
    await second.check_logits(subnet.validator, subnet.miner, LogitOutcome.PASSED)

    async def ranked(api: Client) -> bool:
        return bool((await api.get("/leaderboard")).body["rows"])

    assert await ranked(second)
    assert await until(lambda: ranked(first))
    assert (await first.get("/submissions/1")).body == (await second.get("/submissions/1")).body


async def test_replicas_that_start_together_migrate_once(postgres: PostgresServer) -> None:
    url = database_url(postgres.url(postgres.create_database()), Path())
    databases = [Database(url) for _ in range(4)]
    await asyncio.gather(*(upgrade(database) for database in databases))
    assert await databases[0].read(revision_of) == HEAD
    for database in databases:
        await database.close()
