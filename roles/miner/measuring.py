"""The miner's own measurements: its candidates before the validators' referee."""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from kernels.fork_base import write_fla_base
from node.logs import get_logger
from protocol.messages import DirectorySource, Figures
from protocol.verdicts import Status
from roles.evaluator import Evaluator
from roles.miner.fork import write_kernels

ATTEMPTS: Final = 3
"""A referee that fails for reasons of this machine is asked again."""

_log = get_logger(__name__)


class Measuring:
    """Lays files out as a fork's working tree and has the referee judge them."""

    def __init__(self, referee: Evaluator, work_dir: Path) -> None:
        self._referee = referee
        self._folder = work_dir / "candidate"

    async def measure(self, files: Mapping[str, str], target_sequence_length: int) -> Figures:
        """What a validator would find: import rules, sandbox, correctness, time."""
        await asyncio.to_thread(_lay_out, self._folder, files)
        for attempt in range(1, ATTEMPTS + 1):
            report = await self._referee.evaluate(
                DirectorySource(path=str(self._folder)),
                target_sequence_length=target_sequence_length,
                claimed_tokens_per_sec=None,
            )
            if report.figures.status is not Status.INFRASTRUCTURE:
                break
            _log.warning("the referee could not measure", attempt=attempt, reason=reason_of(report.figures))
        return report.figures


def reason_of(figures: Figures) -> str:
    """The referee's sentence on its decision."""
    return str(figures.evidence.get("reason", ""))


def _lay_out(folder: Path, files: Mapping[str, str]) -> None:
    """A working tree with the candidate: the base and its kernels."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_fla_base(folder)
    write_kernels(folder, files)
