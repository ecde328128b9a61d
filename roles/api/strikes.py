"""Addresses whose submissions keep failing: after five within a day they may not submit for a day."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection, bindparam, literal_column, select

from node.http_server import ApiProblem
from protocol.rules import BAN_FAILURES, BAN_SECONDS
from protocol.verdicts import Fault, Status
from roles.api.tables import submissions

WINDOW: Final = timedelta(seconds=BAN_SECONDS)
TRUSTED: Final = timedelta(days=7)
"""A hotkey that has passed within this time is not stopped by its address."""


_STRIKES: Final = (
    select(submissions.c.settled_at)
    .where(
        submissions.c.address == bindparam("address"),
        submissions.c.pooled_fault == literal_column(f"'{Fault.MINER.value}'"),
        submissions.c.settled_at > bindparam("since"),
    )
    .order_by(submissions.c.settled_at)
)


def check_address(connection: Connection, address: str, miner_hotkey: str, now: datetime) -> None:
    """Raise ApiProblem 403, with the time left, for a banned address."""
    given = {"address": address, "since": now - 2 * WINDOW}
    end = ban_end(list(connection.execute(_STRIKES, given).scalars()))
    if end is None or end <= now or _has_passed(connection, miner_hotkey, now):
        return
    left_s = (end - now).total_seconds()
    raise ApiProblem(
        403,
        f"address {address} is banned for another {left_s / 3600:.1f} hours: {BAN_FAILURES} submissions "
        "from it failed by their miners' fault within 24 hours",
        {"Retry-After": str(math.ceil(left_s))},
    )


def ban_end(strikes: Sequence[datetime]) -> datetime | None:
    """When the last ban that the strikes (in order) brought about ends, None without one."""
    ends = [
        strikes[last] + WINDOW
        for last in range(BAN_FAILURES - 1, len(strikes))
        if strikes[last] - strikes[last - BAN_FAILURES + 1] <= WINDOW
    ]
    return ends[-1] if ends else None


def _has_passed(connection: Connection, miner_hotkey: str, now: datetime) -> bool:
    query = (
        select(submissions.c.id)
        .where(
            submissions.c.miner_hotkey == miner_hotkey,
            submissions.c.pooled_status == Status.PASSED.value,
            submissions.c.settled_at > now - TRUSTED,
        )
        .limit(1)
    )
    return connection.execute(query).first() is not None
