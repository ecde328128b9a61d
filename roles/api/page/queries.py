"""Queries that only the page makes; every function works inside its caller's transaction."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, select

from roles.api.tables import Row, logit_checks, round_places, rounds, verdicts


def list_accuracy(connection: Connection, submission_ids: Sequence[int]) -> Sequence[Row]:
    """The figures of every final verdict on the submissions, without the evidence."""
    query = select(
        verdicts.c.submission_id,
        verdicts.c.status,
        verdicts.c.cosine_similarity,
        verdicts.c.relative_error,
        verdicts.c.gpu,
    ).where(verdicts.c.submission_id.in_(submission_ids), verdicts.c.is_final)
    return connection.execute(query).all()


def list_checks(connection: Connection, miner_hotkey: str, limit: int) -> Sequence[Row]:
    """The newest logit checks of a miner, newest first."""
    query = (
        select(logit_checks)
        .where(logit_checks.c.miner_hotkey == miner_hotkey)
        .order_by(logit_checks.c.checked_at.desc(), logit_checks.c.id.desc())
        .limit(limit)
    )
    return connection.execute(query).all()


def list_finishes(connection: Connection, miner_hotkey: str, since_round: int) -> Sequence[Row]:
    """Where a miner stood when rounds from `since_round` on were closed, newest first."""
    joined = round_places.join(rounds, rounds.c.round_number == round_places.c.round_number)
    columns: tuple[Any, ...] = (*round_places.c, rounds.c.end_time)
    query = (
        select(*columns)
        .select_from(joined)
        .where(round_places.c.round_number >= since_round, round_places.c.miner_hotkey == miner_hotkey)
        .order_by(round_places.c.round_number.desc())
    )
    return connection.execute(query).all()
