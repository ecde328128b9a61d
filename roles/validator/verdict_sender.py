"""Hands verdicts and re-runs to the API until it has answered for each of them."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from node.logs import get_logger
from protocol.errors import ApiRefused
from roles.api_client import SubnetApi, is_about_content
from roles.validator.comparison_store import ComparisonStore
from roles.validator.verdict_store import VerdictStore

_log = get_logger(__name__)


class VerdictSender:
    """Sends what the stores hold and the API has not acknowledged; shared by all that judge."""

    def __init__(self, *, api: SubnetApi, store: VerdictStore, comparisons: ComparisonStore) -> None:
        self._api = api
        self._store = store
        self._comparisons = comparisons
        self._turn = asyncio.Lock()

    async def send_all(self) -> None:
        """Hand in what waits. Raises ApiUnavailable, and ApiRefused when it is not about what was sent."""
        async with self._turn:
            for verdict in await self._store.unacknowledged_verdicts():
                await self._send(
                    partial(self._api.send_verdict, verdict),
                    partial(self._store.close_verdict, verdict),
                    "verdict",
                    submission_id=verdict.submission_id,
                    status=verdict.status.value,
                )
            for comparison in await self._comparisons.unacknowledged():
                await self._send(
                    partial(self._api.send_comparison, comparison),
                    partial(self._comparisons.close, comparison),
                    "re-run",
                    later=comparison.later_submission_id,
                    earlier=comparison.earlier_submission_id,
                    outcome=comparison.outcome.value,
                )

    async def _send(
        self,
        send: Callable[[], Awaitable[object]],
        close: Callable[..., Awaitable[None]],
        what: str,
        **about: object,
    ) -> None:
        try:
            await send()
        except ApiRefused as error:
            if not is_about_content(error):
                raise
            _log.error(
                f"the API refused a {what}, it counts for the own weights only",
                **about,
                reason=str(error),
                http_status=error.status,
            )
            await close(is_refused=True)
            return
        _log.info(f"{what} delivered", **about)
        await close()
