"""Hands the best measured candidate over for submission when the policy says so, and says why when not."""

from typing import Any, Final

from node.bus import Bus
from node.clock import Clock
from node.logs import get_logger
from node.settings_model import MinerSection
from protocol.errors import ApiRefused, ApiUnavailable, SourceRejected
from protocol.events import CandidateVerified
from protocol.types import CommitHash
from roles.api_client import SubnetApi
from roles.backoff import Backoff
from roles.miner.fork import Fork
from roles.miner.history import Entry, History, Phase
from roles.miner.ledger import Stage, SubmissionLedger
from roles.miner.policy import Decision, claim_of, decide, near_ban, round_is_full
from roles.miner.target import Target

LONGEST_WAIT_S: Final = 300.0

_log = get_logger(__name__)


class Submitter:
    """Component that looks every `poll_s` at the best candidate that is ready.

    One that is to be submitted is committed to the fork, written down as offered, and published as
    CandidateVerified: in this order a crash loses nothing and repeats nothing.
    """

    name = "submitter"

    def __init__(
        self,
        *,
        settings: MinerSection,
        target: Target,
        history: History,
        submissions: SubmissionLedger,
        api: SubnetApi,
        fork: Fork,
        bus: Bus,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._target = target
        self._history = history
        self._submissions = submissions
        self._api = api
        self._fork = fork
        self._bus = bus
        self._clock = clock

    async def run(self) -> None:
        """Look and decide until cancelled."""
        await self._prepare_fork()
        target = await self._target.known()
        await self._repeat_offers(target)
        while True:
            await self._look(target)
            await self._clock.sleep(self._settings.poll_s)

    async def _prepare_fork(self) -> None:
        """Before the first candidate is ready: a token that is not accepted is better known early."""
        backoff = Backoff(self._clock, longest_s=LONGEST_WAIT_S)
        while True:
            try:
                await self._fork.prepare()
            except SourceRejected as error:
                await backoff.wait(error)
            else:
                _log.info("fork is ready", fork_url=self._fork.url)
                return

    async def _repeat_offers(self, target: int) -> None:
        """Hand over again what a crash kept from becoming a submission, or what expired meanwhile."""
        for entry in await self._history.entries(Phase.OFFERED, target_sequence_length=target):
            assert entry.offer is not None
            offer = CandidateVerified(**entry.offer)
            if offer.fork_url != self._fork.url:
                continue
            known = await self._submissions.find_code(offer.commit_hash, target)
            if known is None or (known.stage is Stage.EXPIRED and (await self._decide(entry)).is_submit):
                _log.info("candidate handed over again", **_about(entry))
                await self._bus.publish(offer)

    async def _look(self, target: int) -> None:
        best = await self._best(target)
        if best is None:
            return
        why = "scores more" if self._settings.verify_before_submit else "comes first"
        for entry in await self._history.undecided(target):
            if entry.number != best.number:
                await self._note(entry, Decision(False, f"kept: candidate {best.number} {why}"))
        decision = await self._decide(best)
        if decision.is_submit:
            decision = await self._refused_by_limits() or decision
        if decision.is_submit:
            await self._offer(best, decision)
        elif decision.reason != best.decision:
            await self._note(best, decision)

    async def _best(self, target: int) -> Entry | None:
        if self._settings.verify_before_submit:
            return await self._history.best(target, Phase.READY)
        return next(iter(await self._history.entries(Phase.READY, target_sequence_length=target)), None)

    async def _decide(self, entry: Entry) -> Decision:
        score = entry.score if self._settings.verify_before_submit else None
        submissions = await self._submissions.all()
        return decide(score, entry.target_sequence_length, submissions, margin=self._settings.submit_margin)

    async def _refused_by_limits(self) -> Decision | None:
        try:
            current = await self._api.current_round()
            own = await self._api.submissions_of(self._api.hotkey)
        except (ApiRefused, ApiUnavailable) as error:
            return Decision(False, f"waits: the API cannot say what it has of this miner: {error}")
        return near_ban(own, self._clock.now()) or round_is_full(current, own)

    async def _note(self, entry: Entry, decision: Decision) -> None:
        _log.info("candidate not submitted", reason=decision.reason, **_about(entry))
        await self._history.decide(entry.number, decision.reason)

    async def _offer(self, entry: Entry, decision: Decision) -> None:
        figures, measured = entry.figures or {}, entry.tokens_per_sec
        claim = self._settings.unverified_claim_tokens_per_sec
        if self._settings.verify_before_submit and measured is not None:
            claim = claim_of(
                figures,
                measured,
                quantile=self._settings.claim_quantile,
                fraction=self._settings.claim_fraction,
            )
        offer: dict[str, Any] = {
            "fork_url": self._fork.url,
            "commit_hash": await self._commit(entry),
            "target_sequence_length": entry.target_sequence_length,
            "tokens_per_sec": claim if measured is None else measured,
            "claim_tokens_per_sec": claim,
            "vram_mb": figures.get("vram_mb"),
        }
        _log.info("candidate handed over", reason=decision.reason, claim=claim, **_about(entry))
        await self._history.offered(entry.number, offer, decision.reason)
        await self._bus.publish(CandidateVerified(**offer))

    async def _commit(self, entry: Entry) -> CommitHash:
        files = await self._history.files(entry.number)
        backoff = Backoff(self._clock, longest_s=LONGEST_WAIT_S)
        while True:
            try:
                return await self._fork.commit(files, f"Kernels: {entry.name}")
            except SourceRejected as error:
                await backoff.wait(error, **_about(entry))


def _about(entry: Entry) -> dict[str, Any]:
    return {
        "candidate": entry.number,
        "name": entry.name,
        "target_sequence_length": entry.target_sequence_length,
        "tokens_per_sec": entry.tokens_per_sec,
    }
