"""Can the API do its work: the database writes and the chain answers."""

from datetime import datetime
from functools import partial
from typing import Final

from sqlalchemy import Connection

from roles.api.context import Api
from roles.api.database import DatabaseUnavailable
from roles.api.store_limits import find_windows, put_windows
from roles.api.store_submissions import count_queued

CHAIN_SILENT_AFTER_S: Final = 60.0
PROBE: Final = "readiness"


class Readiness:
    """Answers /readyz."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def reason(self) -> str | None:
        """Why requests would fail, None when they would not."""
        try:
            now = self._api.clock.now()
            # Something is really written: reading alone would not notice a full or locked disk.
            await self._api.database.write(partial(_probe, now=now))
            queued = await self._api.database.read(count_queued)
        except DatabaseUnavailable as error:
            return str(error)
        self._api.metrics.evaluation_queue_depth.set(queued)
        return self._api.chain.unreadiness(CHAIN_SILENT_AFTER_S)


def _probe(connection: Connection, *, now: datetime) -> None:
    put_windows(connection, {PROBE: ()}, find_windows(connection, [PROBE]), now)
