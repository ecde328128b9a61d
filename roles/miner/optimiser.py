"""The optimisation loop: propose, measure with the validator's referee, hand over what is better."""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from kernels.fork_base import write_fla_base
from node.bus import Bus
from node.clock import Clock
from node.logs import get_logger
from node.settings_model import MinerSection
from protocol.errors import SourceRejected
from protocol.events import CandidateVerified
from protocol.leagues import weighted_score
from protocol.messages import DirectorySource, Figures
from protocol.types import CommitHash
from protocol.verdicts import Status
from roles.evaluator import Evaluator
from roles.miner.fork import Fork, write_kernels
from roles.miner.ledger import CandidateLedger, Stage, SubmissionLedger, Trial
from roles.miner.proposer import Candidate, Proposer

MEASURE_ATTEMPTS: Final = 3
"""A referee that fails for reasons of this machine is asked again."""
FORK_RETRY_S: Final = 30.0

_log = get_logger(__name__)


class Optimiser:
    """Component that works through `agent_iterations` rounds, then waits.

    A candidate that passes and beats the best live submission by `submit_margin` is committed to the fork and
    published as CandidateVerified. Everything tried is in the journal and is not tried again after a restart.
    """

    name = "optimiser"

    def __init__(
        self,
        *,
        settings: MinerSection,
        proposer: Proposer,
        referee: Evaluator,
        fork: Fork,
        candidates: CandidateLedger,
        submissions: SubmissionLedger,
        work_dir: Path,
        bus: Bus,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._proposer = proposer
        self._referee = referee
        self._fork = fork
        self._candidates = candidates
        self._submissions = submissions
        self._work_dir = work_dir
        self._bus = bus
        self._clock = clock
        self._target = settings.target_sequence_length

    async def run(self) -> None:
        """Work through the rounds, then wait until cancelled."""
        await self._repeat_offers()
        for number in range(1, self._settings.agent_iterations + 1):
            started_s = self._clock.monotonic()
            await self._round(number)
            spent_s = self._clock.monotonic() - started_s
            if number < self._settings.agent_iterations:
                await self._clock.sleep(self._settings.optimization_interval_s - spent_s)
        _log.info("optimisation finished", rounds=self._settings.agent_iterations)
        await asyncio.Event().wait()

    async def _repeat_offers(self) -> None:
        """Hand over again what a crash kept from becoming a submission, or what expired meanwhile."""
        for record in await self._candidates.offered():
            offer = CandidateVerified(**record.data["offer"])
            known = await self._submissions.find_code(offer.commit_hash, offer.target_sequence_length)
            if offer.fork_url != self._fork.url or offer.target_sequence_length != self._target:
                continue
            is_lost = known is None or (
                known.stage is Stage.EXPIRED and await self._beats_the_best(record.data["score"])
            )
            if is_lost:
                _log.info("candidate handed over again", candidate=record.data["name"])
                await self._bus.publish(offer)

    async def _round(self, number: int) -> None:
        candidate = await self._proposer.propose()
        if candidate is None:
            _log.info("nothing new to try", round=number)
            return
        known = await self._candidates.find(candidate.digest, self._target)
        if known is not None:
            _log.info("candidate was tried before", round=number, candidate=candidate.name, was=known.state)
            return
        figures = await self._measure(candidate)
        await self._decide(number, candidate, figures)

    async def _measure(self, candidate: Candidate) -> Figures:
        folder = self._work_dir / "candidate"
        await asyncio.to_thread(_lay_out, folder, candidate.files)
        for attempt in range(1, MEASURE_ATTEMPTS + 1):
            report = await self._referee.evaluate(
                DirectorySource(path=str(folder)),
                target_sequence_length=self._target,
                claimed_tokens_per_sec=None,
            )
            if report.figures.status is not Status.INFRASTRUCTURE:
                break
            _log.warning(
                "the referee could not measure",
                candidate=candidate.name,
                attempt=attempt,
                reason=reason_of(report.figures),
            )
        return report.figures

    async def _decide(self, number: int, candidate: Candidate, figures: Figures) -> None:
        measured = figures.measured_tokens_per_sec if figures.status is Status.PASSED else None
        score = None if measured is None else weighted_score(measured, self._target)
        note: dict[str, Any] = {
            "name": candidate.name,
            "status": figures.status.value,
            "reason": reason_of(figures),
            "tokens_per_sec": measured,
            "score": score,
            "figures": figures.model_dump(mode="json"),
        }
        log = _log.bind(
            round=number, candidate=candidate.name, status=figures.status, tokens_per_sec=measured
        )
        if not self._settings.verify_before_submit:
            log.info("submitting unverified, as miner.verify_before_submit says", reason=note["reason"])
            await self._offer(candidate, figures, measured, note)
        elif measured is None:
            log.info("candidate failed", reason=note["reason"])
            # A machine that could not measure says nothing about the candidate: it may be tried again.
            if figures.status is not Status.INFRASTRUCTURE:
                await self._candidates.record(candidate.digest, self._target, Trial.FAILED, **note)
        elif await self._beats_the_best(score):
            log.info("candidate is better than what is submitted")
            await self._offer(candidate, figures, measured, note)
        else:
            log.info("candidate passed but is no better", submit_margin=self._settings.submit_margin)
            await self._candidates.record(candidate.digest, self._target, Trial.KEPT, **note)

    async def _beats_the_best(self, score: float | None) -> bool:
        live = [submission.score for submission in await self._submissions.all() if submission.is_live]
        if score is None or not live:
            return True
        return score > max(live) * (1 + self._settings.submit_margin)

    async def _offer(
        self, candidate: Candidate, figures: Figures, measured: float | None, note: dict[str, Any]
    ) -> None:
        """Commit to the fork, remember, publish: in this order a crash loses nothing and repeats nothing."""
        if self._settings.verify_before_submit and measured is not None:
            claim = measured * self._settings.claim_fraction
        else:
            claim = self._settings.unverified_claim_tokens_per_sec
        offer: dict[str, Any] = {
            "fork_url": self._fork.url,
            "commit_hash": await self._commit(candidate),
            "target_sequence_length": self._target,
            "tokens_per_sec": claim if measured is None else measured,
            "claim_tokens_per_sec": claim,
            "vram_mb": figures.vram_mb,
        }
        await self._candidates.record(candidate.digest, self._target, Trial.OFFERED, **note, offer=offer)
        await self._bus.publish(CandidateVerified(**offer))

    async def _commit(self, candidate: Candidate) -> CommitHash:
        while True:
            try:
                return await self._fork.commit(candidate.files, f"Kernels: {candidate.name}")
            except SourceRejected as error:
                _log.warning("the fork cannot be used now", reason=str(error), retry_in_s=FORK_RETRY_S)
                await self._clock.sleep(FORK_RETRY_S)


def reason_of(figures: Figures) -> str:
    """The referee's sentence on its decision."""
    return str(figures.evidence.get("reason", ""))


def _lay_out(folder: Path, files: Mapping[str, str]) -> None:
    """A working tree with the candidate: the base and its kernels."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_fla_base(folder)
    write_kernels(folder, files)
