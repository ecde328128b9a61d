"""The optimisation loop: propose, write down, measure with the validator's referee, write down."""

import asyncio
from dataclasses import replace
from typing import Any, Final

from node.clock import Clock
from node.logs import get_logger
from node.settings_model import MinerSection
from protocol.leagues import league_of, weighted_score
from protocol.verdicts import Status
from roles.miner.candidate import Proposer, Unusable
from roles.miner.history import ROUNDS, Entry, History, Phase
from roles.miner.measuring import Measuring, reason_of
from roles.miner.target import FACT, Target, TargetChooser

IDLE_S: Final = 1.0
"""The least pause after a round in which there was nothing new."""

_log = get_logger(__name__)


class Optimiser:
    """Component that works through `agent_iterations` rounds, one each `optimization_interval_s`, then waits.

    A candidate is in the history before it is measured, and its figures before the round ends: a restart
    measures what was cut off, counts its rounds on, and tries nothing twice. A round is one in which
    something new was tried; once all are done, the next start begins anew. What is worth a submission, the
    submitter decides.
    """

    name = "optimiser"

    def __init__(
        self,
        *,
        settings: MinerSection,
        proposer: Proposer,
        measuring: Measuring,
        history: History,
        target: Target,
        chooser: TargetChooser | None,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._proposer = proposer
        self._measuring = measuring
        self._history = history
        self._target = target
        self._chooser = chooser
        self._clock = clock
        self._state: dict[str, Any] = {"doing": "starting"}

    async def run(self) -> None:
        """Settle on the target, measure what was cut off, work through the rounds, wait until cancelled."""
        if self._chooser is not None:
            self._state = {"doing": "measuring every league"}
            self._target.set(await self._chooser.choose())
        target = await self._target.known()
        cut_off = await self._history.entries(Phase.PROPOSED, target_sequence_length=target)
        for entry in cut_off:
            _log.info("measurement taken up again", candidate=entry.number)
            await self._measure(entry)
        await self._rounds(target, is_cut_off=bool(cut_off))
        await asyncio.Event().wait()

    async def _rounds(self, target: int, *, is_cut_off: bool) -> None:
        """Go on with the rounds, or begin anew when the last start has finished all of them."""
        rounds = self._settings.agent_iterations
        done = await self._history.fact(ROUNDS) or 0
        if done >= rounds and not is_cut_off:
            done = 0
        while done < rounds:
            started_s = self._clock.monotonic()
            has_tried = await self._round(done + 1, target)
            done += has_tried
            if done < rounds:
                self._state = {"doing": "waiting for the next round", "round": done}
                spent_s = self._clock.monotonic() - started_s
                least_s = 0.0 if has_tried else IDLE_S
                await self._proposer.rest(max(least_s, self._settings.optimization_interval_s - spent_s))
        _log.info("optimisation finished", rounds=rounds)
        self._state = {"doing": "finished", "round": rounds}

    async def describe(self) -> dict[str, Any]:
        """What it is doing, for the status file."""
        target = self._target.length
        described = self._state | {
            "rounds": self._settings.agent_iterations,
            "target_sequence_length": target,
        }
        if self._chooser is not None:
            described["leagues"] = (await self._history.fact(FACT) or {}).get("leagues")
        if target is None:
            return described
        best = await self._history.best(target)
        return described | {
            "league": league_of(target).name,
            "best": None
            if best is None
            else {"candidate": best.number, "tokens_per_sec": best.tokens_per_sec, "score": best.score},
        }

    async def _round(self, number: int, target: int) -> bool:
        """Try what is proposed; False when there was nothing new, which does not count as a round."""
        self._state = {"doing": "waiting for a proposal", "round": number}
        proposal = await self._proposer.propose()
        if proposal is None:
            _log.info("nothing new to try", round=number)
            return False
        if proposal.parent is None:
            proposal = replace(proposal, parent=await self._history.latest(proposal.proposer, target))
        if isinstance(proposal, Unusable):
            entry = await self._history.refuse(proposal, target, number)
            _log.info("proposal refused", round=number, candidate=entry.number, reason=proposal.reason)
            return True
        entry = await self._history.propose(proposal, target, number)
        if entry.phase is not Phase.PROPOSED:
            _log.info("candidate was tried before", round=number, candidate=entry.number, was=entry.phase)
            return False
        await self._measure(entry, number)
        return True

    async def _measure(self, entry: Entry, number: int | None = None) -> None:
        self._state = {"doing": "measuring", "round": number, "candidate": entry.number, "name": entry.name}
        files = await self._history.files(entry.number)
        figures = await self._measuring.measure(files, entry.target_sequence_length)
        is_passed = figures.status is Status.PASSED
        measured = figures.measured_tokens_per_sec if is_passed else None
        log = _log.bind(round=number, candidate=entry.number, name=entry.name, status=figures.status.value)
        is_sent_anyway = not self._settings.verify_before_submit
        if figures.status is Status.INFRASTRUCTURE and not is_sent_anyway:
            # A machine that could not measure says nothing about the candidate: the next start tries again.
            log.warning("candidate could not be measured", reason=reason_of(figures))
            return
        await self._history.measured(
            entry.number,
            Phase.READY if is_passed or is_sent_anyway else Phase.FAILED,
            status=figures.status.value,
            reason=reason_of(figures),
            tokens_per_sec=measured,
            score=None if measured is None else weighted_score(measured, entry.target_sequence_length),
            figures=figures.model_dump(mode="json"),
        )
        if measured is None:
            log.info("candidate failed", reason=reason_of(figures))
        else:
            log.info("candidate passed", tokens_per_sec=measured)
