"""The memory of signed requests: a nonce works once, whatever process took it."""

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select

from roles.api.tables import nonces


def use_nonce(connection: Connection, hotkey: str, nonce_ns: int, now: datetime) -> bool:
    """Store the nonce; False when it was used before."""
    used = select(nonces.c.nonce_ns).where(nonces.c.hotkey == hotkey, nonces.c.nonce_ns == nonce_ns)
    if (connection.execute(used)).first() is not None:
        return False
    connection.execute(insert(nonces).values(hotkey=hotkey, nonce_ns=nonce_ns, seen_at=now))
    return True


def forget_nonces(connection: Connection, before: datetime) -> None:
    """Drop nonces whose requests are too old to be accepted anyway."""
    connection.execute(delete(nonces).where(nonces.c.seen_at < before))
