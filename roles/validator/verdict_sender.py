"""Hands verdicts and re-runs to the API until it has answered for each of them."""

import asyncio

from node.logs import get_logger
from protocol.errors import ApiRefused
from protocol.messages import Comparison, Verdict
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
                await self._send(verdict)
            for comparison in await self._comparisons.unacknowledged():
                await self._send_comparison(comparison)

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

    async def _send_comparison(self, comparison: Comparison) -> None:
        pair = {"later": comparison.later_submission_id, "earlier": comparison.earlier_submission_id}
        try:
            await self._api.send_comparison(comparison)
        except ApiRefused as error:
            if not is_about_content(error):
                raise
            _log.error(
                "the API refused a re-run, it counts for the own weights only",
                **pair,
                reason=str(error),
                http_status=error.status,
            )
            await self._comparisons.close(comparison, is_refused=True)
            return
        _log.info("re-run delivered", **pair, outcome=comparison.outcome.value)
        await self._comparisons.close(comparison)
