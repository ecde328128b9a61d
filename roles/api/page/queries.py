"""Queries that only the page makes; every function works inside its caller's transaction."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from roles.api.tables import Row, logit_checks, round_places, rounds, verdicts


async def list_accuracy(connection: AsyncConnection, submission_ids: Sequence[int]) -> Sequence[Row]:
    """The figures of every final verdict on the submissions, without the evidence."""
    query = select(
        verdicts.c.submission_id,
        verdicts.c.status,
        verdicts.c.cosine_similarity,
        verdicts.c.relative_error,
        verdicts.c.gpu,
    ).where(verdicts.c.submission_id.in_(submission_ids), verdicts.c.is_final)
    return (await connection.execute(query)).all()


async def list_checks(connection: AsyncConnection, miner_hotkey: str, limit: int) -> Sequence[Row]:
    """The newest logit checks of a miner, newest first."""
    query = (
        select(logit_checks)
        .where(logit_checks.c.miner_hotkey == miner_hotkey)
        .order_by(logit_checks.c.checked_at.desc(), logit_checks.c.id.desc())
        .limit(limit)
    )
    return (await connection.execute(query)).all()


async def list_finishes(connection: AsyncConnection, miner_hotkey: str, since_round: int) -> Sequence[Row]:
    """Where a miner stood when rounds from `since_round` on were closed, newest first."""
    joined = round_places.join(rounds, rounds.c.round_number == round_places.c.round_number)
    columns: tuple[Any, ...] = (*round_places.c, rounds.c.end_time)
    query = (
        select(*columns)
        .select_from(joined)
        .where(round_places.c.round_number >= since_round, round_places.c.miner_hotkey == miner_hotkey)
        .order_by(round_places.c.round_number.desc())
    )
    return (await connection.execute(query)).all()
