"""The memory of who wrote how often, shared by all replicas."""

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from roles.api.tables import rate_windows


def find_windows(connection: Connection, keys: Collection[str]) -> dict[str, list[float]]:
    """The moments (seconds since the epoch) at which each of the keys acted, oldest first; by key."""
    query = select(rate_windows.c.key, rate_windows.c.moments).where(rate_windows.c.key.in_(list(keys)))
    return {key: [float(moment) for moment in moments] for key, moments in connection.execute(query)}


def put_windows(
    connection: Connection, windows: Mapping[str, Iterable[float]], known: Collection[str], now: datetime
) -> None:
    """Store the moments of the keys; `known`: those that have a row."""
    rows = {key: {"moments": list(moments), "seen_at": now} for key, moments in windows.items()}
    changed = [{"named": key, **row} for key, row in rows.items() if key in known]
    added = [{"key": key, **row} for key, row in rows.items() if key not in known]
    if changed:
        connection.execute(update(rate_windows).where(rate_windows.c.key == bindparam("named")), changed)
    if added:
        connection.execute(insert(rate_windows), added)


def forget_windows(connection: Connection, before: datetime) -> None:
    """Drop the keys that have not acted since."""
    connection.execute(delete(rate_windows).where(rate_windows.c.seen_at < before))
