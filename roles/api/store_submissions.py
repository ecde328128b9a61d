"""Queries on submissions; every function works inside its caller's transaction."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, func, insert, select, update

from protocol.types import BlockHeight
from roles.api.tables import Row, submissions

MAX_ID: Final = 2**63 - 1
"""The databases cannot even be asked for a higher number."""


# What every write asks is put together once: SQLAlchemy takes longer for that than SQLite for the answer.
_INSERT: Final = insert(submissions).returning(submissions)
_BY_ID: Final = select(submissions).where(submissions.c.id == bindparam("number"))
_BY_COMMITMENT: Final = select(submissions).where(
    submissions.c.miner_hotkey == bindparam("hotkey"),
    submissions.c.commitment_hash == bindparam("commitment"),
)
_BY_CODE: Final = select(submissions).where(
    submissions.c.miner_hotkey == bindparam("hotkey"),
    submissions.c.commit_hash == bindparam("commit"),
    submissions.c.target_sequence_length == bindparam("length"),
)
_QUEUED: Final = (
    select(submissions)
    .where(
        submissions.c.miner_hotkey == bindparam("hotkey"),
        submissions.c.revealed_at.is_not(None),
        submissions.c.judged_at.is_(None),
    )
    .order_by(submissions.c.id)
    .limit(1)
)


def insert_submission(connection: Connection, values: Mapping[str, Any]) -> Row:
    """Insert a row and return it."""
    return connection.execute(_INSERT, values).one()


def update_submission(connection: Connection, submission_id: int, values: Mapping[str, Any]) -> Row:
    """Change columns of one row and return it."""
    query = update(submissions).where(submissions.c.id == submission_id).values(**values)
    return connection.execute(query.returning(submissions)).one()


def find_submission(connection: Connection, submission_id: int) -> Row | None:
    """The submission of that number."""
    if submission_id > MAX_ID:
        return None
    return connection.execute(_BY_ID, {"number": submission_id}).first()


def find_commitment(connection: Connection, miner_hotkey: str, commitment_hash: str) -> Row | None:
    """The hotkey's commitment with that hash."""
    return connection.execute(_BY_COMMITMENT, {"hotkey": miner_hotkey, "commitment": commitment_hash}).first()


def find_code(
    connection: Connection, miner_hotkey: str, commit_hash: str, target_sequence_length: int
) -> Row | None:
    """The hotkey's revealed submission of that commit for that target length."""
    given = {"hotkey": miner_hotkey, "commit": commit_hash, "length": target_sequence_length}
    return connection.execute(_BY_CODE, given).first()


def find_queued(connection: Connection, miner_hotkey: str) -> Row | None:
    """The hotkey's oldest submission that waits for its first verdict."""
    return connection.execute(_QUEUED, {"hotkey": miner_hotkey}).first()


def list_pending(
    connection: Connection, height: BlockHeight, miner_hotkey: str | None = None
) -> Sequence[Row]:
    """Unrevealed commitments whose window has not passed at `height`, in the order in which they fall due."""
    query = select(submissions).where(
        submissions.c.revealed_at.is_(None),
        submissions.c.commitment_hash.is_not(None),
        submissions.c.expires_block > height,
    )
    if miner_hotkey is not None:
        query = query.where(submissions.c.miner_hotkey == miner_hotkey)
    return (connection.execute(query.order_by(submissions.c.reveal_block, submissions.c.id))).all()


def list_recent(
    connection: Connection, *, limit: int, miner_hotkey: str | None = None, revealed: bool = False
) -> Sequence[Row]:
    """The newest submissions, newest first; of one hotkey or all, revealed ones or all."""
    query = select(submissions)
    if miner_hotkey is not None:
        query = query.where(submissions.c.miner_hotkey == miner_hotkey)
    if revealed:
        query = query.where(submissions.c.revealed_at.is_not(None))
    return (connection.execute(query.order_by(submissions.c.id.desc()).limit(limit))).all()


def list_by_id(connection: Connection, submission_ids: Sequence[int]) -> Sequence[Row]:
    """The submissions of those numbers, in no order."""
    return (connection.execute(select(submissions).where(submissions.c.id.in_(submission_ids)))).all()


def count_revealed(connection: Connection, *, round_number: int | None = None) -> int:
    """How many submissions were revealed or sent directly; in one round or ever."""
    query = select(func.count()).select_from(submissions)
    if round_number is None:
        query = query.where(submissions.c.revealed_at.is_not(None))
    else:
        # Only what is revealed has a round: the index on it answers alone.
        query = query.where(submissions.c.round_number == round_number)
    return int(connection.execute(query).scalar_one())


def count_queued(connection: Connection) -> int:
    """How many submissions wait for their first verdict."""
    query = (
        select(func.count())
        .select_from(submissions)
        .where(submissions.c.revealed_at.is_not(None), submissions.c.judged_at.is_(None))
    )
    return int(connection.execute(query).scalar_one())


def mark_judged(connection: Connection, submission_id: int, now: datetime) -> None:
    """Note the first final verdict: from now on the code is public."""
    connection.execute(
        update(submissions)
        .where(submissions.c.id == submission_id, submissions.c.judged_at.is_(None))
        .values(judged_at=now)
    )
