"""The evaluation loop: lease a submission, have it judged, keep the verdict, tell the API."""

import asyncio
from typing import Final

from node.bus import Bus
from node.clock import Clock
from node.logs import get_logger
from node.metrics import Metrics
from node.settings_model import Settings
from protocol.errors import ApiRefused, ApiUnavailable
from protocol.events import KernelJudged
from protocol.leagues import league_of
from protocol.messages import EvaluationReport, Figures, LeaseAnswer
from protocol.types import LeaseId, SubmissionId
from protocol.verdicts import LeadOutcome, Status
from roles.api_client import SubnetApi, is_about_content
from roles.evaluation import git_source
from roles.evaluator import Evaluator
from roles.validator.leads import Leads
from roles.validator.pause import Pause
from roles.validator.verdict_sender import VerdictSender
from roles.validator.verdict_store import VerdictStore

LONGEST_WAIT_S: Final = 60.0
RECHECK_S: Final = 300.0

_log = get_logger(__name__)


class LeaseLost(Exception):
    """The API gave the submission to somebody else, or took it back."""


class EvaluationLoop:
    """Component that judges one submission at a time, on one device; open leads come before new submissions.

    A verdict is on disk before it is sent, and is sent until the API answers, also by the next process. A
    device that no longer computes, or was missing at the start (`is_device_missing`), is out of service until
    it does; loops of other devices go on. While one evaluation after the other fails for reasons of this
    host, pauses grow between them.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        api: SubnetApi,
        referee: Evaluator,
        store: VerdictStore,
        sender: VerdictSender,
        leads: Leads,
        bus: Bus,
        clock: Clock,
        metrics: Metrics,
        is_device_missing: bool = False,
    ) -> None:
        self.name = f"evaluation loop on {referee.device}"
        self._settings = settings
        self._api = api
        self._referee = referee
        self._store = store
        self._sender = sender
        self._leads = leads
        self._bus = bus
        self._clock = clock
        self._metrics = metrics
        self._is_device_missing = is_device_missing
        self._wait_s = settings.validator.poll_s
        self._pause = Pause(clock, first_s=settings.validator.infrastructure_pause_s)

    async def run(self) -> None:
        """Judge until cancelled."""
        self._metrics.device_in_service.labels(self._referee.device).set(not self._is_device_missing)
        if self._is_device_missing:
            await self._until_device_works()
        while True:
            is_heard = await self._send()
            outcome = await self._leads.compare_next(self._referee)
            if outcome is LeadOutcome.INFRASTRUCTURE:
                await self._until_device_works()
            if outcome is not None:
                continue
            lease = await self._next_lease() if is_heard and not self._pause.is_on() else None
            if lease is None:
                await self._clock.sleep(self._wait_s)
                continue
            status = await self._judge(lease)
            if status is Status.INFRASTRUCTURE:
                await self._until_device_works()

    async def _send(self) -> bool:
        """Hand in what waits; False: the API does not take it now."""
        try:
            await self._sender.send_all()
        except (ApiRefused, ApiUnavailable) as error:
            self._wait_longer("verdicts not delivered", error)
            return False
        return True

    async def _next_lease(self) -> LeaseAnswer | None:
        """Ask for a submission to judge; None: there is none, or the API does not say."""
        try:
            lease = await self._api.lease()
        except (ApiRefused, ApiUnavailable) as error:
            self._wait_longer("no work from the API", error)
            return None
        self._wait_s = self._settings.validator.poll_s
        return lease

    def _wait_longer(self, what: str, error: ApiRefused | ApiUnavailable) -> None:
        self._wait_s = min(2 * self._wait_s, max(LONGEST_WAIT_S, self._settings.validator.poll_s))
        _log.warning(what, reason=str(error), wait_s=self._wait_s)

    async def _until_device_works(self) -> None:
        """Return at once when it does; otherwise say so and try again every few minutes.

        What was judged before does not wait for it.
        """
        device = self._referee.device
        await self._send()
        while not await self._referee.is_device_working():
            self._metrics.device_in_service.labels(device).set(0)
            _log.error("device out of service", device=device, next_try_s=RECHECK_S)
            await self._clock.sleep(RECHECK_S)
            await self._send()
        self._metrics.device_in_service.labels(device).set(1)

    async def _judge(self, lease: LeaseAnswer) -> Status | None:
        """Have a submission judged; returns how, or None when the lease was lost meanwhile."""
        log = _log.bind(
            submission_id=lease.submission_id, hotkey=lease.miner_hotkey, commit=lease.commit_hash
        )
        log.info("submission leased", fork_url=lease.fork_url, target=lease.target_sequence_length)
        try:
            report = await self._evaluate(lease)
        except LeaseLost as lost:
            log.warning("lease lost, the evaluation was stopped", reason=str(lost))
            return None
        figures = report.figures
        verdict = self._api.sign_verdict(
            **{name: getattr(figures, name) for name in Figures.model_fields},
            lease_id=lease.lease_id,
            submission_id=lease.submission_id,
        )
        judgement = await self._store.put_verdict(verdict, lease)
        self._count(figures, lease)
        self._pause.note(figures.status)
        log.info(
            "submission judged",
            status=figures.status.value,
            fault=figures.fault.value,
            reason=figures.evidence.get("reason", ""),
            measured_tokens_per_sec=figures.measured_tokens_per_sec,
            claimed_tokens_per_sec=lease.claimed_tokens_per_sec,
            sandbox=report.sandbox_tier,
        )
        await self._bus.publish(
            KernelJudged(
                submission_id=judgement.submission_id,
                hotkey=judgement.hotkey,
                status=judgement.status,
                tokens_per_sec=judgement.measured_tokens_per_sec,
            )
        )
        return figures.status

    async def _evaluate(self, lease: LeaseAnswer) -> EvaluationReport:
        """Have the submission judged while the lease is kept alive. Raises LeaseLost."""
        source = git_source(self._settings, fork_url=lease.fork_url, commit_hash=lease.commit_hash)
        judging = asyncio.ensure_future(
            self._referee.evaluate(
                source,
                target_sequence_length=lease.target_sequence_length,
                claimed_tokens_per_sec=lease.claimed_tokens_per_sec,
                known_fingerprints=self._store.known_fingerprints(lease),
            )
        )
        keeping = asyncio.ensure_future(self._keep(lease))
        try:
            await asyncio.wait({judging, keeping}, return_when=asyncio.FIRST_COMPLETED)
            if not judging.done():
                keeping.result()
            return judging.result()
        finally:
            judging.cancel()
            keeping.cancel()
            await asyncio.wait({judging, keeping})

    async def _keep(self, lease: LeaseAnswer) -> None:
        while True:
            await self._clock.sleep(lease.heartbeat_s)
            try:
                await self._api.heartbeat(SubmissionId(lease.submission_id), LeaseId(lease.lease_id))
            except ApiUnavailable as error:
                # The verdict may still be taken: a lease that ended but was not given again lives on.
                _log.warning("heartbeat not delivered", submission_id=lease.submission_id, reason=str(error))
            except ApiRefused as error:
                if is_about_content(error):
                    raise LeaseLost(str(error)) from error
                _log.warning("heartbeat refused", submission_id=lease.submission_id, reason=str(error))

    def _count(self, figures: Figures, lease: LeaseAnswer) -> None:
        self._metrics.evaluations.labels(figures.status.value, figures.fault.value).inc()
        if figures.measured_tokens_per_sec is not None:
            league = league_of(lease.target_sequence_length).name
            self._metrics.measured_tokens_per_second.labels(figures.gpu, league).set(
                figures.measured_tokens_per_sec
            )
