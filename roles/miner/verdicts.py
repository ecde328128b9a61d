"""What became of the miner's submissions: verdicts, ranks and their reasons, told to the operator."""

import asyncio
import contextlib
from typing import Any

from node.bus import Bus
from node.clock import Clock
from node.logs import get_logger
from protocol.errors import ApiRefused, ApiUnavailable
from protocol.events import SubmissionRevealed
from protocol.messages import StoredVerdict, SubmissionDetail
from protocol.types import SubmissionId
from protocol.verdicts import LogitOutcome, Status
from roles.api_client import SubnetApi
from roles.miner.ledger import Stage, Submission, SubmissionLedger

_log = get_logger(__name__)


class VerdictFollower:
    """Component that asks the API every `poll_s` about submissions that have been revealed.

    A verdict, and later a change of rank or of the logit verification, is logged and kept in the ledger.
    """

    name = "verdict follower"

    def __init__(
        self, *, ledger: SubmissionLedger, api: SubnetApi, bus: Bus, clock: Clock, poll_s: float
    ) -> None:
        self._ledger = ledger
        self._api = api
        self._clock = clock
        self._poll_s = poll_s
        self._revealed = bus.subscribe(SubmissionRevealed)
        self._is_api_away = False
        self._logits: LogitOutcome | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._note_reveals(), name="reveals")
            while True:
                await self._look()
                await self._clock.sleep(self._poll_s)

    async def _note_reveals(self) -> None:
        async for event in self._revealed:
            _log.info("waiting for a verdict", submission_id=event.submission_id, commit=event.commit_hash)

    async def _look(self) -> None:
        followed = await self._ledger.all(Stage.REVEALED, Stage.JUDGED)
        if not followed:
            return
        try:
            newest = await self._api.submissions_of(self._api.hotkey)
            details = {detail.submission_id: detail for detail in newest}
            for submission in followed:
                number = submission.submission_id
                if submission.stage is Stage.REVEALED and number is not None and number not in details:
                    with contextlib.suppress(ApiRefused):
                        details[number] = await self._api.submission(SubmissionId(number))
        except (ApiRefused, ApiUnavailable) as error:
            if not self._is_api_away:
                _log.warning("verdicts cannot be asked for", reason=str(error))
            self._is_api_away = True
            return
        self._is_api_away = False
        for submission in followed:
            detail = details.get(submission.submission_id or 0)
            if detail is not None and detail.state == "judged":
                await self._note(submission, detail)

    async def _note(self, submission: Submission, detail: SubmissionDetail) -> None:
        verdict = decisive(detail)
        if verdict is None:
            return
        reason = str(verdict.evidence.get("reason", ""))
        about: dict[str, Any] = {
            "submission_id": detail.submission_id,
            "commit": submission.commit_hash,
            "rank": detail.rank,
            "logits": detail.logit_outcome.value,
        }
        if submission.verdict is not verdict.status:
            log = _log.info if verdict.status is Status.PASSED else _log.error
            log(
                "submission judged",
                verdict=verdict.status.value,
                reason=reason,
                measured_tokens_per_sec=verdict.measured_tokens_per_sec,
                claimed_tokens_per_sec=detail.claimed_tokens_per_sec,
                fault=verdict.fault.value,
                **about,
            )
        elif submission.rank != detail.rank:
            _log.info("rank changed", was=submission.rank, **about)
        elif verdict.status is Status.PASSED and self._logits is not detail.logit_outcome:
            _log.info("logit verification", **about)
        self._logits = detail.logit_outcome
        if (submission.verdict, submission.rank, submission.stage) != (
            verdict.status,
            detail.rank,
            Stage.JUDGED,
        ):
            await self._ledger.advance(
                submission, Stage.JUDGED, verdict=verdict.status.value, rank=detail.rank, reason=reason
            )


def decisive(detail: SubmissionDetail) -> StoredVerdict | None:
    """The verdict that speaks for all: a pass when more than half of the validators gave one."""
    verdicts = [verdict for verdict in detail.verdicts if verdict.status is not Status.INFRASTRUCTURE]
    passed = [verdict for verdict in verdicts if verdict.status is Status.PASSED]
    failed = [verdict for verdict in verdicts if verdict.status is not Status.PASSED]
    if len(passed) > len(failed):
        return passed[-1]
    return failed[-1] if failed else next(iter(detail.verdicts), None)
