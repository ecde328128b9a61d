"""The memory of who wrote how often, shared by all replicas."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from roles.api.tables import rate_windows


def find_window(connection: Connection, key: str) -> list[float]:
    """The moments (seconds since the epoch) at which the key acted, oldest first."""
    moments = connection.execute(select(rate_windows.c.moments).where(rate_windows.c.key == key)).scalar()
    return [] if moments is None else [float(moment) for moment in moments]


def put_window(connection: Connection, key: str, moments: Sequence[float], now: datetime) -> None:
    """Store the moments of a key."""
    values = {"moments": list(moments), "seen_at": now}
    known = connection.execute(update(rate_windows).where(rate_windows.c.key == key).values(**values))
    if known.rowcount == 0:
        connection.execute(insert(rate_windows).values(key=key, **values))


def forget_windows(connection: Connection, before: datetime) -> None:
    """Drop the keys that have not acted since."""
    connection.execute(delete(rate_windows).where(rate_windows.c.seen_at < before))
