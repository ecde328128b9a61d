"""The memory of signed requests: a nonce works once, whatever process took it."""

from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from roles.api.tables import nonces


async def use_nonce(connection: AsyncConnection, hotkey: str, nonce_ns: int, now: datetime) -> bool:
    """Store the nonce; False when it was used before."""
    used = select(nonces.c.nonce_ns).where(nonces.c.hotkey == hotkey, nonces.c.nonce_ns == nonce_ns)
    if (await connection.execute(used)).first() is not None:
        return False
    await connection.execute(insert(nonces).values(hotkey=hotkey, nonce_ns=nonce_ns, seen_at=now))
    return True


async def forget_nonces(connection: AsyncConnection, before: datetime) -> None:
    """Drop nonces whose requests are too old to be accepted anyway."""
    await connection.execute(delete(nonces).where(nonces.c.seen_at < before))
