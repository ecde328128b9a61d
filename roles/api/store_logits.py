"""Queries on logit checks."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, case, func, insert, select

from protocol.verdicts import LogitOutcome
from roles.api.tables import Row, logit_checks


def find_check(
    connection: Connection, miner_hotkey: str, validator_hotkey: str, checked_at: datetime
) -> Row | None:
    """The check that this validator made of this miner at that moment."""
    query = select(logit_checks).where(
        logit_checks.c.miner_hotkey == miner_hotkey,
        logit_checks.c.validator_hotkey == validator_hotkey,
        logit_checks.c.checked_at == checked_at,
    )
    return connection.execute(query).first()


def insert_check(connection: Connection, values: Mapping[str, Any]) -> None:
    """Store a check."""
    connection.execute(insert(logit_checks).values(**values))


def list_latest(connection: Connection, since: datetime) -> Sequence[Row]:
    """The latest check of every miner by every validator, leaving out checks made before `since`.

    A miner that could not be reached keeps what its last decided check said: a pass lasts its 24 h.
    """
    is_pending = case((logit_checks.c.outcome == LogitOutcome.PENDING, 1), else_=0)
    newest_first = (
        func.row_number()
        .over(
            partition_by=(logit_checks.c.miner_hotkey, logit_checks.c.validator_hotkey),
            order_by=(is_pending, logit_checks.c.checked_at.desc(), logit_checks.c.id.desc()),
        )
        .label("age")
    )
    checks = (
        select(
            logit_checks.c.miner_hotkey,
            logit_checks.c.validator_hotkey,
            logit_checks.c.outcome,
            logit_checks.c.checked_at,
            newest_first,
        )
        .where(logit_checks.c.checked_at >= since)
        .subquery()
    )
    query = select(checks).where(checks.c.age == 1).order_by(checks.c.miner_hotkey, checks.c.checked_at)
    return connection.execute(query).all()
