"""Queries on re-runs of two submissions."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, insert, or_, select

from roles.api.tables import Row, comparisons, short_columns


def find_comparison(connection: Connection, later: int, earlier: int, validator_hotkey: str) -> Row | None:
    """This validator's re-run of the two."""
    query = select(comparisons).where(
        comparisons.c.later_submission_id == later,
        comparisons.c.earlier_submission_id == earlier,
        comparisons.c.validator_hotkey == validator_hotkey,
    )
    return connection.execute(query).first()


def insert_comparison(connection: Connection, values: Mapping[str, Any]) -> None:
    """Store a re-run."""
    connection.execute(insert(comparisons).values(**values))


def list_outcomes(connection: Connection) -> Sequence[Row]:
    """Who found what about which pair."""
    query = select(
        comparisons.c.later_submission_id,
        comparisons.c.earlier_submission_id,
        comparisons.c.validator_hotkey,
        comparisons.c.outcome,
    ).order_by(comparisons.c.id)
    return connection.execute(query).all()


def list_comparisons(
    connection: Connection, submission_ids: Sequence[int], *, is_short: bool = False
) -> Sequence[Row]:
    """All re-runs with one of the submissions, oldest first; `is_short`: of the evidence the reason alone."""
    columns = short_columns(comparisons) if is_short else comparisons.c
    query = (
        select(*columns)
        .where(
            or_(
                comparisons.c.later_submission_id.in_(submission_ids),
                comparisons.c.earlier_submission_id.in_(submission_ids),
            )
        )
        .order_by(comparisons.c.id)
    )
    return connection.execute(query).all()
