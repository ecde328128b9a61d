"""When a verdict becomes an outcome: pooled by stake, and settled once a quorum has judged."""

from datetime import datetime, timedelta

from sqlalchemy import Connection

from roles.api import store_standing as store
from roles.api.consensus import ACTIVE_S, Stakes, has_quorum, pool_verdicts


def pool(connection: Connection, submission_id: int, stakes: Stakes) -> None:
    """Pool all that validators have found out about a submission."""
    pooled = pool_verdicts(store.list_final_verdicts(connection, submission_id), stakes)
    if pooled is not None:
        store.put_pooled(connection, submission_id, pooled)


def settle(connection: Connection, stakes: Stakes, now: datetime) -> None:
    """Let the outcomes count on which validators with more than half of the active stake have judged.

    Once settled a submission stays settled; further verdicts still move its pooled outcome.
    """
    unsettled = store.list_unsettled(connection)
    if not unsettled:
        return
    active = store.list_active_validators(connection, now - timedelta(seconds=ACTIVE_S))
    settled = [number for number, judges in unsettled.items() if has_quorum(judges, active, stakes)]
    if settled:
        store.mark_settled(connection, settled, now)
