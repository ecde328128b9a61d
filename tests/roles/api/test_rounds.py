"""Rounds: one open at a time, closed when due, with winner and baseline."""

import asyncio
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

from sqlalchemy import select

from node.settings_model import Settings
from protocol.verdicts import LogitOutcome
from roles.api.tables import Row, round_places, rounds
from tests.roles.api.harness import Client, Code, JumpingClock, Subnet, running, stored, with_api


async def stored_rounds(settings: Settings) -> list[Row]:
    """Every round in the database, first to last."""
    return await stored(settings, select(rounds).order_by(rounds.c.round_number))


async def current(api: Client) -> dict[str, Any]:
    """GET /get_current_round."""
    body: dict[str, Any] = (await api.get("/get_current_round")).body
    return body


async def test_first_round(api: Client, subnet: Subnet) -> None:
    body = await current(api)
    assert body["round_number"] == 1
    assert body["status"] == "open"
    assert body["winner_hotkey"] is None
    assert body["baseline_submission_id"] is None
    assert body["total_submissions"] == 0
    assert 48 * 3600 - 60 < body["time_remaining_seconds"] <= 48 * 3600
    length = datetime.fromisoformat(body["end_time"]) - datetime.fromisoformat(body["start_time"])
    assert length.total_seconds() == 48 * 3600
    await api.submit(subnet.miner, Code())
    assert (await current(api))["total_submissions"] == 1


async def test_round_closes_with_its_winner_which_becomes_the_baseline(
    settings: Settings, subnet: Subnet
) -> None:
    # Over when the test says so, whatever else the machine does; no block comes in so short a time.
    clock = JumpingClock()
    async with running(with_api(settings, round_s=1800.0), clock) as api:
        submitted = await api.submit(subnet.miner, Code())
        await api.submit(subnet.rival, Code(tokens_per_sec=10.0))
        for measured in (2000.0, 1000.0):
            lease = await api.lease(subnet.validator)
            assert lease is not None
            await api.judge(subnet.validator, lease, measured_tokens_per_sec=measured)
        for miner in (subnet.miner, subnet.rival):
            await api.check_logits(subnet.validator, miner, LogitOutcome.PASSED)
        assert (await current(api))["round_number"] == 1
        clock.shift = timedelta(seconds=1800)
        body = await current(api)
        assert body["round_number"] == 2
        assert body["baseline_submission_id"] == submitted.submission_id
        assert body["total_submissions"] == 0
    first, last = (await stored_rounds(settings))[:2]
    assert first.status == "closed"
    assert first.winner_hotkey == subnet.miner.ss58_address
    assert first.winner_submission_id == submitted.submission_id
    assert first.end_block == subnet.chain.height()
    assert first.end_time == last.start_time
    columns = ("round_number", "place", "miner_hotkey", "tokens_per_sec", "weighted_score", "share")
    places = await stored(
        settings,
        select(*(round_places.c[name] for name in columns)).order_by(
            round_places.c.round_number, round_places.c.place
        ),
    )
    assert places[:2] == [
        (1, 1, subnet.miner.ss58_address, 2000.0, 6000.0, 0.6),
        (1, 2, subnet.rival.ss58_address, 1000.0, 3000.0, 0.25),
    ]


async def test_rounds_close_exactly_once_under_load(settings: Settings) -> None:
    async with running(with_api(settings, round_s=0.2)) as api:
        for _ in range(15):
            await asyncio.gather(*(current(api) for _ in range(10)))
            await asyncio.sleep(0.05)
    found = await stored_rounds(settings)
    assert len(found) >= 3
    assert [row.round_number for row in found] == list(range(1, len(found) + 1))
    assert [row.status for row in found[:-1]] == ["closed"] * (len(found) - 1)
    assert found[-1].status == "open"
    for before, after in pairwise(found):
        assert before.end_time <= after.start_time


async def test_rounds_that_nobody_ran_are_not_made_up(settings: Settings) -> None:
    settings = with_api(settings, round_s=1000.0)
    clock = JumpingClock()
    async with running(settings, clock) as api:
        assert (await current(api))["round_number"] == 1
    # Three rounds are over and the fourth is half over, with room for a slow machine.
    clock.shift = timedelta(seconds=3500)
    async with running(settings, clock) as api:
        assert (await current(api))["round_number"] == 2
    found = await stored_rounds(settings)
    assert found[-1].status == "open"


async def test_round_continues_after_a_restart(settings: Settings) -> None:
    async with running(settings) as api:
        before = await current(api)
    async with running(settings) as api:
        after = await current(api)
    assert (before["id"], before["end_time"]) == (after["id"], after["end_time"])
    assert len(await stored_rounds(settings)) == 1
