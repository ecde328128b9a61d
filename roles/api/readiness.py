"""Can the API do its work: the database writes and the chain answers."""

from typing import Final

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from roles.api.context import Api
from roles.api.database import DatabaseUnavailable
from roles.api.store_submissions import count_queued

CHAIN_SILENT_AFTER_S: Final = 60.0


class Readiness:
    """Answers /readyz."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def reason(self) -> str | None:
        """Why requests would fail, None when they would not."""
        try:
            await self._api.database.write(_probe, quiet=True)
            queued = await self._api.database.read(count_queued)
        except DatabaseUnavailable as error:
            return str(error)
        self._api.metrics.evaluation_queue_depth.set(queued)
        return self._api.chain.unreadiness(CHAIN_SILENT_AFTER_S)


async def _probe(connection: AsyncConnection) -> None:
    # The write lock is taken and given back: an answer to reads alone would not notice a full or locked disk.
    await connection.execute(text("SELECT 1"))
