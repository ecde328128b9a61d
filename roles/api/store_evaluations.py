"""Queries on the evaluation queue: leases and verdicts."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from roles.api.tables import Row, leases, short_columns, submissions, verdicts

HELD = "held"
DONE = "done"
SUPERSEDED = "superseded"


def find_next(
    connection: Connection,
    *,
    validator_hotkey: str,
    miner_hotkeys: Collection[str],
    now: datetime,
    retry_delays: Sequence[timedelta],
    submission_id: int | None = None,
) -> Row | None:
    """The submission that this validator should judge next, None when it has judged all.

    With `submission_id`: that one, if it may be judged. After this validator's first infrastructure fault it
    may not for the first of `retry_delays`, after the second fault for the second.

    Coldkeys take turns, the one served longest ago first, so that nobody's many submissions keep the others
    waiting; within a coldkey the oldest comes first.
    """
    served = (
        select(leases.c.miner_coldkey, func.max(leases.c.id).label("last"))
        .where(leases.c.validator_hotkey == validator_hotkey)
        .group_by(leases.c.miner_coldkey)
        .subquery()
    )
    is_recent = (
        and_(verdicts.c.attempt == attempt, verdicts.c.created_at > now - delay)
        for attempt, delay in enumerate(retry_delays, start=1)
    )
    judged = (
        select(verdicts.c.id)
        .where(
            verdicts.c.submission_id == submissions.c.id,
            verdicts.c.validator_hotkey == validator_hotkey,
            or_(verdicts.c.is_final, *is_recent),
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
    if submission_id is not None:
        query = query.where(submissions.c.id == submission_id)
    return connection.execute(query).first()


def insert_lease(connection: Connection, values: Mapping[str, Any]) -> None:
    """Give a lease; an expired one of the same validator on the same submission is superseded."""
    connection.execute(
        update(leases)
        .where(
            leases.c.submission_id == values["submission_id"],
            leases.c.validator_hotkey == values["validator_hotkey"],
            leases.c.state == HELD,
        )
        .values(state=SUPERSEDED)
    )
    connection.execute(insert(leases).values(state=HELD, **values))


def find_lease(connection: Connection, lease_id: str) -> Row | None:
    """The lease of that handle, whatever became of it."""
    return (connection.execute(select(leases).where(leases.c.lease_id == lease_id))).first()


def update_lease(connection: Connection, lease_id: str, values: Mapping[str, Any]) -> None:
    """Change columns of one lease."""
    connection.execute(update(leases).where(leases.c.lease_id == lease_id).values(**values))


def list_leased(connection: Connection, submission_ids: Sequence[int], now: datetime) -> set[int]:
    """Which of the submissions somebody is judging right now."""
    query = select(leases.c.submission_id).where(
        leases.c.submission_id.in_(submission_ids), leases.c.state == HELD, leases.c.expires_at > now
    )
    return set(connection.execute(query).scalars())


def find_verdict(connection: Connection, submission_id: int, validator_hotkey: str) -> Row | None:
    """This validator's latest verdict on the submission."""
    query = select(verdicts).where(
        verdicts.c.submission_id == submission_id, verdicts.c.validator_hotkey == validator_hotkey
    )
    return connection.execute(query).first()


def put_verdict(connection: Connection, values: Mapping[str, Any], *, replaces: Row | None) -> None:
    """Store a verdict, in the place of the validator's earlier infrastructure fault where there is one."""
    if replaces is None:
        connection.execute(insert(verdicts).values(**values))
    else:
        connection.execute(update(verdicts).where(verdicts.c.id == replaces.id).values(**values))


def list_verdicts(
    connection: Connection, submission_ids: Sequence[int], *, is_short: bool = False
) -> Sequence[Row]:
    """All verdicts on the submissions, oldest first; `is_short`: of the evidence the reason alone."""
    columns = short_columns(verdicts) if is_short else verdicts.c
    query = select(*columns).where(verdicts.c.submission_id.in_(submission_ids)).order_by(verdicts.c.id)
    return connection.execute(query).all()
