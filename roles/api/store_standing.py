"""Queries on what is ranked: pooled outcomes, the version of the standing, and figures over all."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, func, select, update

from protocol.verdicts import Status
from roles.api.consensus import Pooled
from roles.api.tables import Row, standing_version, submissions, verdicts


@dataclass(frozen=True, slots=True)
class Figures:
    """Measured tokens per second over all settled submissions that passed; None without one."""

    average: float | None = None
    highest: float | None = None
    lowest: float | None = None


def find_version(connection: Connection) -> int:
    """The number that every change of the standing raises."""
    return int(connection.execute(select(standing_version.c.version)).scalar_one())


def _is_ranked() -> ColumnElement[bool]:
    return (submissions.c.pooled_status == Status.PASSED.value) & submissions.c.settled_at.is_not(None)


def _is_original() -> ColumnElement[bool]:
    """No copy: the first to have fixed the same code, judged by now, is of the same hotkey."""
    other = submissions.alias()
    first = (
        select(other.c.miner_hotkey)
        .where(other.c.fingerprint == submissions.c.fingerprint, other.c.settled_at.is_not(None))
        .order_by(other.c.code_fixed_at, other.c.id)
        .limit(1)
        .scalar_subquery()
    )
    return submissions.c.fingerprint.is_(None) | (submissions.c.miner_hotkey == first)


def list_ranked(connection: Connection, *, after: int = 0, limit: int | None = None) -> Sequence[Row]:
    """Settled submissions that passed, no copies, with what ranking needs, by number; after `after`."""
    query = (
        select(
            submissions.c.id,
            submissions.c.miner_hotkey,
            submissions.c.target_sequence_length,
            submissions.c.pooled_tokens_per_sec,
            submissions.c.code_fixed_at,
            submissions.c.round_number,
        )
        .where(_is_ranked(), _is_original(), submissions.c.id > after)
        .order_by(submissions.c.id)
        .limit(limit)
    )
    return connection.execute(query).all()


def find_figures(connection: Connection) -> Figures:
    """Average, highest and lowest of what was measured."""
    measured = submissions.c.pooled_tokens_per_sec
    query = select(func.avg(measured), func.max(measured), func.min(measured)).where(_is_ranked())
    return Figures(*connection.execute(query).one())


def put_pooled(connection: Connection, submission_id: int, pooled: Pooled) -> None:
    """Note what the verdicts on a submission amount to."""
    connection.execute(
        update(submissions)
        .where(submissions.c.id == submission_id)
        .values(
            pooled_status=pooled.status.value,
            pooled_fault=pooled.fault.value,
            pooled_tokens_per_sec=pooled.tokens_per_sec,
            fingerprint=pooled.fingerprint,
        )
    )


def list_final_verdicts(connection: Connection, submission_id: int) -> Sequence[Row]:
    """The verdicts on a submission that end an evaluation, oldest first."""
    query = (
        select(verdicts)
        .where(verdicts.c.submission_id == submission_id, verdicts.c.is_final)
        .order_by(verdicts.c.id)
    )
    return connection.execute(query).all()


def list_active_validators(connection: Connection, since: datetime) -> set[str]:
    """The validators that have handed in a verdict since then."""
    query = select(verdicts.c.validator_hotkey).where(verdicts.c.created_at >= since).distinct()
    return set(connection.execute(query).scalars())


def list_unsettled(connection: Connection) -> dict[int, set[str]]:
    """Judged submissions whose outcome does not count yet, each with the validators that judged it."""
    query = (
        select(submissions.c.id, verdicts.c.validator_hotkey)
        .join(verdicts, verdicts.c.submission_id == submissions.c.id)
        .where(submissions.c.judged_at.is_not(None), submissions.c.settled_at.is_(None), verdicts.c.is_final)
    )
    judges: dict[int, set[str]] = {}
    for number, hotkey in connection.execute(query):
        judges.setdefault(int(number), set()).add(hotkey)
    return judges


def mark_settled(connection: Connection, submission_ids: Sequence[int], now: datetime) -> None:
    """From now on the outcomes count: for the ranking, and as strikes."""
    connection.execute(update(submissions).where(submissions.c.id.in_(submission_ids)).values(settled_at=now))
