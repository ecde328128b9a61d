"""Queries on the evaluation queue: leases and verdicts."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import and_, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from roles.api.tables import Row, leases, submissions, verdicts

HELD = "held"
DONE = "done"
SUPERSEDED = "superseded"


async def find_next(
    connection: AsyncConnection, *, validator_hotkey: str, miner_hotkeys: Collection[str], now: datetime
) -> Row | None:
    """The submission that this validator should judge next, None when it has judged all.

    Coldkeys take turns, the one served longest ago first, so that nobody's many submissions keep the others
    waiting; within a coldkey the oldest comes first.
    """
    served = (
        select(leases.c.miner_coldkey, func.max(leases.c.id).label("last"))
        .where(leases.c.validator_hotkey == validator_hotkey)
        .group_by(leases.c.miner_coldkey)
        .subquery()
    )
    judged = (
        select(verdicts.c.id)
        .where(
            verdicts.c.submission_id == submissions.c.id,
            verdicts.c.validator_hotkey == validator_hotkey,
            verdicts.c.is_final,
        )
        .exists()
    )
    in_work = (
        select(leases.c.id)
        .where(
            leases.c.submission_id == submissions.c.id,
            leases.c.validator_hotkey == validator_hotkey,
            leases.c.state == HELD,
            leases.c.expires_at > now,
        )
        .exists()
    )
    query = (
        select(submissions)
        .outerjoin(served, served.c.miner_coldkey == submissions.c.miner_coldkey)
        .where(
            submissions.c.revealed_at.is_not(None),
            submissions.c.miner_hotkey.in_(miner_hotkeys),
            ~judged,
            ~in_work,
        )
        .order_by(func.coalesce(served.c.last, 0), submissions.c.revealed_at, submissions.c.id)
        .limit(1)
    )
    return (await connection.execute(query)).first()


async def insert_lease(connection: AsyncConnection, values: Mapping[str, Any]) -> None:
    """Give a lease; an expired one of the same validator on the same submission is superseded."""
    await connection.execute(
        update(leases)
        .where(
            leases.c.submission_id == values["submission_id"],
            leases.c.validator_hotkey == values["validator_hotkey"],
            leases.c.state == HELD,
        )
        .values(state=SUPERSEDED)
    )
    await connection.execute(insert(leases).values(state=HELD, **values))


async def find_lease(connection: AsyncConnection, lease_id: str) -> Row | None:
    """The lease of that handle, whatever became of it."""
    return (await connection.execute(select(leases).where(leases.c.lease_id == lease_id))).first()


async def update_lease(connection: AsyncConnection, lease_id: str, values: Mapping[str, Any]) -> None:
    """Change columns of one lease."""
    await connection.execute(update(leases).where(leases.c.lease_id == lease_id).values(**values))


async def list_leased(connection: AsyncConnection, submission_ids: Sequence[int], now: datetime) -> set[int]:
    """Which of the submissions somebody is judging right now."""
    query = select(leases.c.submission_id).where(
        and_(leases.c.submission_id.in_(submission_ids), leases.c.state == HELD, leases.c.expires_at > now)
    )
    return set((await connection.execute(query)).scalars())


async def find_verdict(connection: AsyncConnection, submission_id: int, validator_hotkey: str) -> Row | None:
    """This validator's latest verdict on the submission."""
    query = select(verdicts).where(
        verdicts.c.submission_id == submission_id, verdicts.c.validator_hotkey == validator_hotkey
    )
    return (await connection.execute(query)).first()


async def put_verdict(
    connection: AsyncConnection, values: Mapping[str, Any], *, replaces: Row | None
) -> None:
    """Store a verdict, in the place of the validator's earlier infrastructure fault where there is one."""
    if replaces is None:
        await connection.execute(insert(verdicts).values(**values))
    else:
        await connection.execute(update(verdicts).where(verdicts.c.id == replaces.id).values(**values))


async def list_verdicts(connection: AsyncConnection, submission_ids: Sequence[int]) -> Sequence[Row]:
    """All verdicts on the submissions, oldest first."""
    query = select(verdicts).where(verdicts.c.submission_id.in_(submission_ids)).order_by(verdicts.c.id)
    return (await connection.execute(query)).all()


async def list_rankable(connection: AsyncConnection) -> Sequence[Row]:
    """Every final verdict with what ranking needs of its submission."""
    query = (
        select(
            verdicts.c.submission_id,
            verdicts.c.status,
            verdicts.c.measured_tokens_per_sec,
            submissions.c.miner_hotkey,
            submissions.c.target_sequence_length,
            submissions.c.code_fixed_at,
            submissions.c.round_number,
        )
        .join(submissions, submissions.c.id == verdicts.c.submission_id)
        .where(verdicts.c.is_final)
        .order_by(verdicts.c.id)
    )
    return (await connection.execute(query)).all()
