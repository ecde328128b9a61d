"""Start the referee: the one way in which validator, miner and `verify` have a submission judged."""

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from node.cgroups import make_room
from node.logs import get_logger
from node.processes import worker_environment
from node.settings_model import EvaluationSection, Settings
from node.workers import run_json_process
from protocol.errors import ConfigError, WorkerFailed
from protocol.judging import fault_of
from protocol.messages import (
    ComparisonFigures,
    ComparisonJob,
    ComparisonReport,
    DirectorySource,
    EvaluationJob,
    EvaluationReport,
    Figures,
    GitSource,
)
from protocol.rules import RULES_VERSION
from protocol.verdicts import Isolation, LeadOutcome, Status
from roles.places import Place

CPU_SEQUENCE_LENGTH: Final = 256
"""T of the CPU profile: an operator call is a fraction of a second in Triton's interpreter."""
LOCK_PATIENCE_S: Final = 1800.0
"""Other measurements on this machine come first; they take turns."""
START_S: Final = 120.0
CHECK_S: Final = 120.0
"""A GPU that cannot multiply two matrices in this time is taken for wedged."""

_log = get_logger(__name__)


def git_source(settings: Settings, *, fork_url: str, commit_hash: str) -> GitSource:
    """The commit of a submission, as the settings allow it to be fetched."""
    return GitSource(
        fork_url=fork_url,
        commit_hash=commit_hash,
        allow_file=settings.is_local_chain,
        allowed_hosts=settings.api.allowed_git_hosts,
    )


def needed_isolation(settings: Settings, *, do_verdicts_score: bool) -> Isolation:
    """What a submission is judged in at least: the local chain has no wallet worth protecting."""
    if settings.is_local_chain:
        return Isolation.NONE if settings.validator.unsafe_no_sandbox else Isolation.ANY
    return Isolation.TO_SCORE if do_verdicts_score else Isolation.ANY


class Referee:
    """Has submissions judged in one place (default: `[node] device`), each in a process of its own.

    `do_verdicts_score`: they are a validator's, and on a public chain need a sandbox that is strong enough.
    Raises ConfigError for a device that is not there, and for a profile that is another device's.
    """

    def __init__(
        self,
        settings: Settings,
        data_dir: Path,
        *,
        place: Place | None = None,
        do_verdicts_score: bool = False,
        on_stage: Callable[[str], None] | None = None,
    ) -> None:
        self._settings = settings
        self._work_dir = data_dir / "evaluations"
        self._place = Place.here(settings.node.device) if place is None else place
        chosen = settings.evaluation.profile
        if chosen not in ("auto", self.profile):
            raise ConfigError(
                f'[evaluation] profile = "{chosen}", but the device is {self._place.device}: use "auto", '
                f"or a device that is a {chosen.upper()}"
            )
        self._do_verdicts_score = do_verdicts_score
        self._on_stage = on_stage

    @property
    def device(self) -> str:
        """What it judges on, for people: `cpu` or `cuda:<n>`, if it is on this host."""
        return self._place.name

    @property
    def profile(self) -> Literal["cpu", "gpu"]:
        """The measuring profile of the device."""
        return "cpu" if self._place.device == "cpu" else "gpu"

    def sequence_length(self, target_sequence_length: int) -> int:
        """Return T that is really run for a target length."""
        limit = self._settings.evaluation.max_sequence_length
        if self.profile == "cpu":
            limit = min(limit or CPU_SEQUENCE_LENGTH, CPU_SEQUENCE_LENGTH)
        return min(target_sequence_length, limit) if limit is not None else target_sequence_length

    async def evaluate(
        self,
        source: GitSource | DirectorySource,
        *,
        target_sequence_length: int,
        claimed_tokens_per_sec: float | None,
        known_fingerprints: Mapping[str, int] | None = None,
        seeds: Sequence[int] = (),
    ) -> EvaluationReport:
        """Judge one submission; a referee that crashes or hangs gives an `infrastructure` report.

        `seeds` are those of an earlier evaluation that is to be replayed.
        """
        job = self._job(
            source,
            target_sequence_length,
            claimed_tokens_per_sec=claimed_tokens_per_sec,
            known_fingerprints=dict(known_fingerprints or {}),
            seeds=list(seeds),
        )
        try:
            return EvaluationReport.model_validate_json(await self._run(job))
        except (WorkerFailed, ValidationError) as error:
            _log.error("the referee failed", error=str(error))
            return self._infrastructure(str(error))

    async def compare(
        self, *, earlier: tuple[GitSource, int], later: tuple[GitSource, int]
    ) -> ComparisonReport:
        """Time two submissions in turn, each a source and its target length in tokens.

        A referee that crashes or hangs gives an `infrastructure` report.
        """
        job = ComparisonJob(earlier=self._job(*earlier, at_once=2), later=self._job(*later, at_once=2))
        try:
            return ComparisonReport.model_validate_json(await self._run(job, "--compare"))
        except (WorkerFailed, ValidationError) as error:
            _log.error("the referee failed", error=str(error))
            figures = ComparisonFigures(
                outcome=LeadOutcome.INFRASTRUCTURE,
                gpu=self._place.name,
                versions={},
                rules_version=RULES_VERSION,
                evidence={"reason": str(error)[:2000]},
            )
            return ComparisonReport(figures=figures, sandbox_tier="unknown")

    def _job(
        self,
        source: GitSource | DirectorySource,
        target_sequence_length: int,
        *,
        at_once: int = 1,
        **fields: Any,
    ) -> EvaluationJob:
        """What the referee is asked; `at_once`: submissions that share this device's part of the memory."""
        own = self._settings.evaluation
        return EvaluationJob(
            source=source,
            target_sequence_length=target_sequence_length,
            sequence_length=self.sequence_length(target_sequence_length),
            profile=self.profile,
            device=self._place.device,
            trials_min=own.trials_min,
            trials_max=max(own.trials_min, own.trials_max),
            time_budget_s=own.time_budget_s,
            deadline_s=own.deadline_s,
            vram_limit_bytes=None if own.vram_limit_mb is None else own.vram_limit_mb * 2**20,
            memory_limit_bytes=_memory_limit_bytes(own) // at_once,
            work_dir=str(self._work_dir.absolute()),
            isolation=needed_isolation(self._settings, do_verdicts_score=self._do_verdicts_score),
            **fields,
        )

    async def _run(self, job: EvaluationJob | ComparisonJob, *options: str) -> str:
        """Start a referee on a job; returns its answer. Raises WorkerFailed."""
        if self._place.is_here:
            # From the process at whose head this node is: the referee could not move what is above it.
            await asyncio.to_thread(make_room)
        submissions = 2 if isinstance(job, ComparisonJob) else 1
        return await run_json_process(
            [*self._place.argv, *options],
            job.model_dump_json(),
            timeout_s=LOCK_PATIENCE_S + START_S + 2 * submissions * self._settings.evaluation.deadline_s,
            env=worker_environment(),
            on_stderr_line=self._take_line,
        )

    async def is_device_working(self) -> bool:
        """Ask a process of its own to compute something on the device."""
        try:
            await run_json_process(
                [*self._place.argv, "--check", self._place.device],
                "",
                timeout_s=CHECK_S,
                env=worker_environment(),
                on_stderr_line=self._take_line,
            )
        except WorkerFailed as error:
            _log.warning("device does not work", device=self._place.name, reason=str(error))
            return False
        return True

    def _take_line(self, line: str) -> None:
        if line.startswith("stage: "):
            if self._on_stage is not None:
                self._on_stage(line.removeprefix("stage: "))
            return
        _log.info("referee says", line=line)

    def _infrastructure(self, reason: str) -> EvaluationReport:
        return EvaluationReport(
            figures=Figures(
                status=Status.INFRASTRUCTURE,
                fault=fault_of(Status.INFRASTRUCTURE),
                gpu=self._place.name,
                versions={},
                rules_version=RULES_VERSION,
                evidence={"reason": reason[:2000]},
            ),
            sandbox_tier="unknown",
        )


def _memory_limit_bytes(section: EvaluationSection) -> int:
    """Half of the host for all submissions that are judged at once."""
    if section.memory_limit_mb is not None:
        return section.memory_limit_mb * 2**20
    host_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return host_bytes // 2 // max(1, len(section.devices))
