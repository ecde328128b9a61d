"""Candidates that a language model writes: hostile code like any other, and first an answer to read."""

import asyncio
from typing import Final

from node.clock import Clock
from node.logs import get_logger
from roles.miner.agent_answer import AnswerRejected, read_answer
from roles.miner.agent_prompt import SYSTEM, start_files, task
from roles.miner.candidate import Candidate, Unusable
from roles.miner.history import Entry, History
from roles.miner.language_model import LanguageModel, ModelFailed
from roles.miner.target import Target

TOLD_ATTEMPTS: Final = 5
KEPT_CHARS: Final = 2000
"""How much of an answer that could not be used is kept."""
NAME: Final = "agent"

_log = get_logger(__name__)


class AgentProposer:
    """Proposes the shipped kernel first, then what the model makes of the best candidate so far."""

    def __init__(self, model: LanguageModel, history: History, target: Target, clock: Clock) -> None:
        self._model = model
        self._history = history
        self._target = target
        self.rest = clock.sleep

    async def propose(self) -> Candidate | Unusable | None:
        """The next candidate; None when the model gave no answer, which the log explains."""
        target = await self._target.known()
        first = Candidate("start", await asyncio.to_thread(start_files), NAME, note="the shipped kernel")
        start = await self._history.find(first.digest, target)
        if start is None:
            return first
        base = await self._history.best(target) or start
        files = await self._history.files(base.number)
        question = task(base, files, await self._attempts(target), target)
        try:
            answer = await self._model.complete(SYSTEM, question)
        except ModelFailed as error:
            _log.warning("no proposal", reason=str(error))
            return None
        return await self._read(answer, base, files, target)

    async def _attempts(self, target: int) -> list[Entry]:
        entries = await self._history.entries(target_sequence_length=target, limit=4 * TOLD_ATTEMPTS)
        return [entry for entry in entries if entry.proposer == NAME][-TOLD_ATTEMPTS:]

    async def _read(
        self, answer: str, base: Entry, files: dict[str, str], target: int
    ) -> Candidate | Unusable:
        def unusable(reason: str, note: str) -> Unusable:
            return Unusable("answer", reason, NAME, parent=base.number, note=note)

        try:
            change = read_answer(answer)
        except AnswerRejected as error:
            return unusable(str(error), answer[:KEPT_CHARS].encode(errors="replace").decode())
        candidate = Candidate(
            change.summary[:60] or "change",
            files | change.files,
            NAME,
            parent=base.number,
            note=change.summary,
        )
        known = await self._history.find(candidate.digest, target)
        if known is not None:
            return unusable(f"the answer gives candidate {known.number} again", change.summary)
        return candidate
