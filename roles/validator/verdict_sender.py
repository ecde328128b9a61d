"""Hands verdicts to the API until it has answered for each of them."""

import asyncio

from node.logs import get_logger
from protocol.errors import ApiRefused
from protocol.messages import Verdict
from roles.api_client import SubnetApi, is_about_content
from roles.validator.verdict_store import VerdictStore

_log = get_logger(__name__)


class VerdictSender:
    """Sends what the store holds and the API has not acknowledged; shared by all that judge."""

    def __init__(self, *, api: SubnetApi, store: VerdictStore) -> None:
        self._api = api
        self._store = store
        self._turn = asyncio.Lock()

    async def send_all(self) -> None:
        """Hand in what waits. Raises ApiUnavailable, and ApiRefused when it is not about a verdict."""
        async with self._turn:
            for verdict in await self._store.unacknowledged_verdicts():
                await self._send(verdict)

    async def _send(self, verdict: Verdict) -> None:
        try:
            await self._api.send_verdict(verdict)
        except ApiRefused as error:
            if not is_about_content(error):
                raise
            _log.error(
                "the API refused a verdict, it counts for the own weights only",
                submission_id=verdict.submission_id,
                reason=str(error),
                http_status=error.status,
            )
            await self._store.close_verdict(verdict, is_refused=True)
            return
        _log.info("verdict delivered", submission_id=verdict.submission_id, status=verdict.status.value)
        await self._store.close_verdict(verdict)
