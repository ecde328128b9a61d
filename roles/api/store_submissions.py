"""Queries on submissions; every function works inside its caller's transaction."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from protocol.types import BlockHeight, SubmissionId
from roles.api.tables import Row, submissions

MAX_ID = 2**63 - 1
"""The databases cannot even be asked for a higher number."""


async def insert_submission(connection: AsyncConnection, values: Mapping[str, Any]) -> SubmissionId:
    """Insert a row and return its number."""
    result = await connection.execute(insert(submissions).values(**values).returning(submissions.c.id))
    return SubmissionId(int(result.scalar_one()))


async def update_submission(
    connection: AsyncConnection, submission_id: SubmissionId, values: Mapping[str, Any]
) -> None:
    """Change columns of one row."""
    await connection.execute(update(submissions).where(submissions.c.id == submission_id).values(**values))


async def find_submission(connection: AsyncConnection, submission_id: int) -> Row | None:
    """The submission of that number."""
    if submission_id > MAX_ID:
        return None
    return (await connection.execute(select(submissions).where(submissions.c.id == submission_id))).first()


async def find_commitment(connection: AsyncConnection, miner_hotkey: str, commitment_hash: str) -> Row | None:
    """The hotkey's commitment with that hash."""
    query = select(submissions).where(
        submissions.c.miner_hotkey == miner_hotkey, submissions.c.commitment_hash == commitment_hash
    )
    return (await connection.execute(query)).first()


async def find_code(
    connection: AsyncConnection, miner_hotkey: str, commit_hash: str, target_sequence_length: int
) -> Row | None:
    """The hotkey's revealed submission of that commit for that target length."""
    query = select(submissions).where(
        submissions.c.miner_hotkey == miner_hotkey,
        submissions.c.commit_hash == commit_hash,
        submissions.c.target_sequence_length == target_sequence_length,
    )
    return (await connection.execute(query)).first()


async def find_queued(connection: AsyncConnection, miner_hotkey: str) -> Row | None:
    """The hotkey's oldest submission that waits for its first verdict."""
    query = (
        select(submissions)
        .where(
            submissions.c.miner_hotkey == miner_hotkey,
            submissions.c.revealed_at.is_not(None),
            submissions.c.judged_at.is_(None),
        )
        .order_by(submissions.c.id)
        .limit(1)
    )
    return (await connection.execute(query)).first()


async def list_pending(
    connection: AsyncConnection, height: BlockHeight, miner_hotkey: str | None = None
) -> Sequence[Row]:
    """Unrevealed commitments whose window has not passed at `height`, in the order in which they fall due."""
    query = select(submissions).where(
        submissions.c.revealed_at.is_(None),
        submissions.c.commitment_hash.is_not(None),
        submissions.c.expires_block > height,
    )
    if miner_hotkey is not None:
        query = query.where(submissions.c.miner_hotkey == miner_hotkey)
    return (await connection.execute(query.order_by(submissions.c.reveal_block, submissions.c.id))).all()


async def list_recent(
    connection: AsyncConnection, *, limit: int, miner_hotkey: str | None = None, revealed: bool = False
) -> Sequence[Row]:
    """The newest submissions, newest first; of one hotkey or all, revealed ones or all."""
    query = select(submissions)
    if miner_hotkey is not None:
        query = query.where(submissions.c.miner_hotkey == miner_hotkey)
    if revealed:
        query = query.where(submissions.c.revealed_at.is_not(None))
    return (await connection.execute(query.order_by(submissions.c.id.desc()).limit(limit))).all()


async def list_by_id(connection: AsyncConnection, submission_ids: Sequence[int]) -> Sequence[Row]:
    """The submissions of those numbers, in no order."""
    return (await connection.execute(select(submissions).where(submissions.c.id.in_(submission_ids)))).all()


async def count_revealed(connection: AsyncConnection, *, round_number: int | None = None) -> int:
    """How many submissions were revealed or sent directly; in one round or ever."""
    query = select(func.count()).select_from(submissions).where(submissions.c.revealed_at.is_not(None))
    if round_number is not None:
        query = query.where(submissions.c.round_number == round_number)
    return int((await connection.execute(query)).scalar_one())


async def count_queued(connection: AsyncConnection) -> int:
    """How many submissions wait for their first verdict."""
    query = (
        select(func.count())
        .select_from(submissions)
        .where(submissions.c.revealed_at.is_not(None), submissions.c.judged_at.is_(None))
    )
    return int((await connection.execute(query)).scalar_one())


async def mark_judged(connection: AsyncConnection, submission_id: int, now: datetime) -> None:
    """Note the first final verdict: from now on the code is public."""
    await connection.execute(
        update(submissions)
        .where(submissions.c.id == submission_id, submissions.c.judged_at.is_(None))
        .values(judged_at=now)
    )
