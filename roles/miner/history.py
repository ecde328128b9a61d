"""Everything that the optimisation loop has tried, in SQLite: lineage, files, figures, decisions.

A candidate is on disk before it is measured and its figures before anything is decided, so that whoever was
killed goes on with the next step and repeats none.
"""

import asyncio
import json
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

from node.clock import Clock
from protocol.errors import JournalError
from roles.miner.candidate import Candidate, Unusable
from roles.miner.history_file import ROUNDS, Entry, HistoryFile, Phase, digest_of

__all__ = ["HISTORY_FILE", "ROUNDS", "Entry", "History", "Phase"]

HISTORY_FILE: Final = "history.sqlite"

T = TypeVar("T")


class History:
    """The history in one file; every change is on disk when the call returns.

    Raises ConfigError when the file is no history or belongs to a newer version, JournalError when the disk
    refuses.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="history")
        self._file = HistoryFile(path)

    async def close(self) -> None:
        """Close the file; calls made before are finished first."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._file.database.close)
        self._thread.shutdown(wait=False)

    async def propose(
        self, candidate: Candidate, target_sequence_length: int, round_number: int | None = None
    ) -> Entry:
        """Write a candidate down before it is measured; one that is known already is returned as it is.

        Of a new one the round is counted in the same transaction: no kill comes between the two.
        """
        return await self._run(
            lambda: self._file.insert(
                candidate,
                target_sequence_length,
                candidate.files,
                digest=candidate.digest,
                phase=Phase.PROPOSED,
                now=self._clock.now().isoformat(),
                round_number=round_number,
            )
        )

    async def refuse(
        self, proposal: Unusable, target_sequence_length: int, round_number: int | None = None
    ) -> Entry:
        """Write down what could not be used, and why."""
        now = self._clock.now().isoformat()
        return await self._run(
            lambda: self._file.insert(
                proposal,
                target_sequence_length,
                {},
                digest=digest_of(json.dumps([proposal.name, proposal.reason, proposal.note, now])),
                phase=Phase.REFUSED,
                reason=proposal.reason,
                now=now,
                round_number=round_number,
            )
        )

    async def measured(
        self,
        number: int,
        phase: Phase,
        *,
        status: str,
        reason: str,
        tokens_per_sec: float | None,
        score: float | None,
        figures: Mapping[str, Any],
    ) -> Entry:
        """Write down what the referee found."""
        return await self._change(
            number,
            phase=phase,
            status=status,
            reason=reason,
            tokens_per_sec=tokens_per_sec,
            score=score,
            figures=json.dumps(figures, allow_nan=False),
            measured_at=self._clock.now().isoformat(),
        )

    async def decide(self, number: int, decision: str) -> Entry:
        """Write down why a candidate was submitted or was not."""
        return await self._change(number, decision=decision)

    async def offered(self, number: int, offer: Mapping[str, Any], decision: str) -> Entry:
        """Write down that a candidate was committed and is handed over."""
        return await self._change(
            number, phase=Phase.OFFERED, offer=json.dumps(offer, allow_nan=False), decision=decision
        )

    async def entries(
        self, *phases: Phase, target_sequence_length: int | None = None, limit: int | None = None
    ) -> list[Entry]:
        """The newest `limit` candidates in the given phases (in any without), oldest first."""
        return await self._run(lambda: self._file.entries(phases, target_sequence_length, limit))

    async def entry(self, number: int) -> Entry | None:
        """One candidate."""
        return await self._run(lambda: self._file.entry(number))

    async def files(self, number: int) -> dict[str, str]:
        """The files of a candidate by name; nothing when there is no such candidate."""
        return await self._run(lambda: self._file.files(number))

    async def best(self, target_sequence_length: int, *phases: Phase) -> Entry | None:
        """The candidate with the highest score for a target length, in the given phases (in any without)."""
        return await self._run(lambda: self._file.best(target_sequence_length, phases))

    async def undecided(self, target_sequence_length: int) -> list[Entry]:
        """Candidates that are ready and of which nothing is said, or that they wait."""
        return await self._run(lambda: self._file.undecided(target_sequence_length))

    async def find(self, digest: str, target_sequence_length: int) -> Entry | None:
        """The candidate with these files for a target length."""
        return await self._run(lambda: self._file.find(digest, target_sequence_length))

    async def latest(self, proposer: str, target_sequence_length: int) -> int | None:
        """Number of a proposer's latest candidate for a target length."""
        return await self._run(lambda: self._file.latest(proposer, target_sequence_length))

    async def fact(self, name: str) -> Any:
        """Something remembered under a name; None without it."""
        return await self._run(lambda: self._file.fact(name))

    async def remember(self, name: str, value: Any) -> None:
        """Keep something under a name."""
        await self._run(lambda: self._file.remember(name, value))

    async def _change(self, number: int, **values: Any) -> Entry:
        return await self._run(lambda: self._file.change(number, **values))

    async def _run(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            try:
                with self._file.database:
                    return work()
            except sqlite3.Error as error:
                raise JournalError(f"history {self._file.path} cannot be used: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)
