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
from protocol.messages import EvaluationReport, Figures, GitSource, LeaseAnswer, Verdict
from protocol.types import LeaseId, SubmissionId
from roles.api_client import SubnetApi, is_about_content
from roles.evaluator import Evaluator
from roles.validator.verdict_store import VerdictStore

LONGEST_WAIT_S: Final = 60.0

_log = get_logger(__name__)


class LeaseLost(Exception):
    """The API gave the submission to somebody else, or took it back."""


class EvaluationLoop:
    """Component that judges one submission at a time.

    A verdict is on disk before it is sent, and is sent until the API answers, also by the next process.
    """

    name = "evaluation loop"

    def __init__(
        self,
        *,
        settings: Settings,
        api: SubnetApi,
        referee: Evaluator,
        store: VerdictStore,
        bus: Bus,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._api = api
        self._referee = referee
        self._store = store
        self._bus = bus
        self._clock = clock
        self._metrics = metrics
        self._wait_s = settings.validator.poll_s

    async def run(self) -> None:
        """Judge until cancelled."""
        while True:
            try:
                await self._send_verdicts()
                lease = await self._api.lease()
            except (ApiRefused, ApiUnavailable) as error:
                _log.warning("no work from the API", reason=str(error), wait_s=self._wait_s)
                await self._clock.sleep(self._wait_s)
                self._wait_s = min(2 * self._wait_s, max(LONGEST_WAIT_S, self._settings.validator.poll_s))
                continue
            self._wait_s = self._settings.validator.poll_s
            if lease is None:
                await self._clock.sleep(self._settings.validator.poll_s)
                continue
            await self._judge(lease)

    async def _judge(self, lease: LeaseAnswer) -> None:
        log = _log.bind(
            submission_id=lease.submission_id, hotkey=lease.miner_hotkey, commit=lease.commit_hash
        )
        log.info("submission leased", fork_url=lease.fork_url, target=lease.target_sequence_length)
        try:
            report = await self._evaluate(lease)
        except LeaseLost as lost:
            log.warning("lease lost, the evaluation was stopped", reason=str(lost))
            return
        figures = report.figures
        verdict = self._api.sign_verdict(
            **{name: getattr(figures, name) for name in Figures.model_fields},
            lease_id=lease.lease_id,
            submission_id=lease.submission_id,
        )
        judgement = await self._store.put_verdict(verdict, lease, fingerprint=report.fingerprint)
        self._count(figures, lease)
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

    async def _evaluate(self, lease: LeaseAnswer) -> EvaluationReport:
        """Have the submission judged while the lease is kept alive. Raises LeaseLost."""
        source = GitSource(
            fork_url=lease.fork_url,
            commit_hash=lease.commit_hash,
            allow_file=self._settings.is_local_chain,
            allowed_hosts=self._settings.api.allowed_git_hosts,
        )
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

    async def _send_verdicts(self) -> None:
        """Hand in what the API has not acknowledged; raises when it cannot be reached."""
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

    def _count(self, figures: Figures, lease: LeaseAnswer) -> None:
        self._metrics.evaluations.labels(figures.status.value, figures.fault.value).inc()
        if figures.measured_tokens_per_sec is not None:
            league = league_of(lease.target_sequence_length).name
            self._metrics.measured_tokens_per_second.labels(figures.gpu, league).set(
                figures.measured_tokens_per_sec
            )
