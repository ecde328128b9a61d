"""The shipped kernels with what a search over their schedules and launch parameters finds on this device."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kernels.export import export_files
from kernels.launch import Launch
from node.clock import Clock
from node.logs import get_logger
from node.workers import WorkerProcess
from protocol.errors import WorkerFailed, WorkerRefused
from roles.miner.candidate import Candidate
from roles.miner.target import Target
from roles.miner.tuning_worker import TURN_PATIENCE_S

DATABASE: Final = "tune.sqlite"
START_S: Final = 300.0
"""Importing, drawing inputs, the reference, and a trial that began at the last moment."""

_log = get_logger(__name__)


class TunerProposer:
    """Searches for `budget_s` in a worker process each time it is asked; proposes the best when it is new.

    The study is on disk (`tune.sqlite`, that of `quasar-node tune`): a killed search goes on where it was.
    `run_length` tells the length that the referee really runs for a target.
    """

    def __init__(
        self,
        target: Target,
        clock: Clock,
        *,
        device: str,
        data_dir: Path,
        budget_s: float,
        run_length: Callable[[int], int],
    ) -> None:
        self._target = target
        self._clock = clock
        self._device = device
        self._database = data_dir.absolute() / DATABASE
        self._budget_s = budget_s
        self._run_length = run_length
        self._last: str | None = None
        self.rest = clock.sleep

    async def propose(self) -> Candidate | None:
        """What is the best now; None when that is what it was, or the search failed."""
        target = await self._target.known()
        try:
            found = await self._search(self._run_length(target))
        except (WorkerFailed, WorkerRefused) as error:
            _log.error("the search failed", reason=str(error))
            return None
        if found["configuration"] is None:
            _log.warning("the search has found nothing that is right", trials=found["trials"])
            return None
        parameters = dict(found["configuration"])
        schedule = parameters.pop("schedule")
        launch = Launch(**parameters) if parameters else None
        files = await asyncio.to_thread(export_files, schedule, launch=launch)
        candidate = Candidate(_name(schedule, parameters), files, "tuner", note=_note(found))
        if candidate.digest == self._last:
            return None
        self._last = candidate.digest
        return candidate

    async def _search(self, length: int) -> dict[str, Any]:
        """A process of its own for each search: its memory on the device is given back."""
        worker = WorkerProcess("roles.miner.tuning_worker", clock=self._clock, on_stderr_line=_tell)
        params = {
            "device": self._device,
            "length": length,
            "database": str(self._database),
            "budget_s": self._budget_s,
        }
        try:
            return await worker.call("tune", params, self._budget_s + TURN_PATIENCE_S + START_S)
        finally:
            await worker.close()


def _tell(line: str) -> None:
    _log.info("search", trial=line)


def _name(schedule: str, parameters: dict[str, int]) -> str:
    return " ".join([schedule, *(f"{name}={value}" for name, value in parameters.items())])


def _note(found: dict[str, Any]) -> str:
    return f"best of {found['trials']} configurations, {found['milliseconds']:.3f} ms"
