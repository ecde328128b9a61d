"""Queries on rounds and on the snapshots of their rankings."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, insert, select, update

from protocol.ranking import Place
from roles.api.tables import Row, round_places, rounds

OPEN = "open"
CLOSED = "closed"


def find_open_round(connection: Connection) -> Row | None:
    """The one round that is open, None before the first."""
    return (connection.execute(select(rounds).where(rounds.c.status == OPEN))).first()


def insert_round(connection: Connection, values: Mapping[str, Any]) -> None:
    """Open a round; a second open one violates a constraint."""
    connection.execute(insert(rounds).values(status=OPEN, **values))


def close_round(connection: Connection, round_id: int, values: Mapping[str, Any]) -> bool:
    """Close a round; False when somebody else has done so."""
    result = connection.execute(
        update(rounds).where(rounds.c.id == round_id, rounds.c.status == OPEN).values(status=CLOSED, **values)
    )
    return int(result.rowcount) == 1


def insert_places(connection: Connection, round_number: int, places: Sequence[Place]) -> None:
    """Keep the ranking with which a round ended."""
    if not places:
        return
    connection.execute(
        insert(round_places),
        [
            {
                "round_number": round_number,
                "place": place.place,
                "submission_id": place.entry.submission_id,
                "miner_hotkey": place.entry.hotkey,
                "tokens_per_sec": place.entry.tokens_per_sec,
                "weighted_score": place.score,
                "share": place.share,
            }
            for place in places
        ],
    )


def find_round_number(connection: Connection, moment: datetime) -> int | None:
    """The number of the last round that had begun at `moment`."""
    query = (
        select(rounds.c.round_number)
        .where(rounds.c.start_time <= moment)
        .order_by(rounds.c.round_number.desc())
        .limit(1)
    )
    number: int | None = connection.execute(query).scalar()
    return number
