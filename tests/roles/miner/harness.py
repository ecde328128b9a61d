"""A miner in pieces: real journal, git, API client and components; a scripted referee."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.bus import Bus
from node.clock import SystemClock
from node.journal import Journal
from node.settings_model import MinerSection, Settings
from protocol.events import (
    BlockAdvanced,
    CandidateVerified,
    CommitmentRecorded,
    Event,
    KernelJudged,
    LogitsChecked,
    SubmissionRevealed,
    WeightsSet,
)
from protocol.messages import (
    ComparisonFigures,
    ComparisonReport,
    DirectorySource,
    EvaluationReport,
    Figures,
    GitSource,
)
from protocol.rules import RULES_VERSION
from protocol.types import BlockHeight
from protocol.verdicts import Fault, LeadOutcome, Status
from roles.api_client import SubnetApi, open_api
from roles.miner.anchoring import Anchor
from roles.miner.candidate import Candidate, Proposer, Unusable
from roles.miner.coordinator import CommitRevealCoordinator
from roles.miner.fork import Fork, open_fork
from roles.miner.history import HISTORY_FILE, History
from roles.miner.ledger import SubmissionLedger
from roles.miner.measuring import Measuring
from roles.miner.optimiser import Optimiser
from roles.miner.submitter import Submitter
from roles.miner.target import Target
from roles.miner.verdicts import VerdictFollower
from tests.roles.api.harness import Subnet

KEY = bytes(32)
TARGET = 100_000


def files(text: str = "x = 1\n") -> dict[str, str]:
    """Five kernel files, not worth running."""
    names = ("chunk", "fused_recurrent", "forward_substitution", "chunk_intra_token_parallel", "gate")
    return {f"{name}.py": text for name in names}


def report(
    status: Status = Status.PASSED,
    tokens_per_sec: float | None = 1000.0,
    *,
    fingerprint: str | None = None,
    **evidence: Any,
) -> EvaluationReport:
    """What a referee might answer."""
    faults = {Status.PASSED: Fault.NOBODY, Status.INFRASTRUCTURE: Fault.INFRASTRUCTURE}
    return EvaluationReport(
        figures=Figures(
            status=status,
            fault=faults.get(status, Fault.MINER),
            measured_tokens_per_sec=tokens_per_sec,
            gpu="cpu",
            versions={"torch": "2.13.0"},
            rules_version=RULES_VERSION,
            fingerprint=fingerprint,
            evidence={"reason": f"scripted {status.value}", **evidence},
        ),
        sandbox_tier="none",
    )


def comparison_report(
    outcome: LeadOutcome = LeadOutcome.CONFIRMED, ratio: float | None = 1.5
) -> ComparisonReport:
    """What a referee might answer about two submissions."""
    figures = ComparisonFigures(
        outcome=outcome,
        ratio=ratio,
        gpu="cpu",
        versions={"torch": "2.13.0"},
        rules_version=RULES_VERSION,
        evidence={"reason": f"scripted {outcome.value}"},
    )
    return ComparisonReport(figures=figures, sandbox_tier="none")


@dataclass
class ScriptedReferee:
    """Answers with the given reports in turn, the last one for ever; remembers what it was asked."""

    reports: Sequence[EvaluationReport] = field(default_factory=lambda: [report()])
    asked: list[dict[str, Any]] = field(default_factory=list)
    comparisons: Sequence[ComparisonReport] = field(default_factory=lambda: [comparison_report()])
    compared: list[tuple[GitSource, GitSource]] = field(default_factory=list)
    """Later and earlier of every re-run."""
    hold: asyncio.Event | None = None
    cancelled: int = 0
    device: str = "cpu"
    works: list[bool] = field(default_factory=list)
    """Answers to whether the device works, in turn; it does from then on."""

    async def is_device_working(self) -> bool:
        """Look the answer up."""
        return self.works.pop(0) if self.works else True

    async def evaluate(
        self,
        source: GitSource | DirectorySource,
        *,
        target_sequence_length: int,
        claimed_tokens_per_sec: float | None,
        known_fingerprints: Mapping[str, int] | None = None,
    ) -> EvaluationReport:
        """Look the answer up."""
        seen: dict[str, str] = {}
        if isinstance(source, DirectorySource):
            folder = Path(source.path) / "fla/ops/quasar"
            seen = {path.name: path.read_text() for path in folder.iterdir()}
        self.asked.append(
            {
                "source": source,
                "files": seen,
                "target": target_sequence_length,
                "claim": claimed_tokens_per_sec,
                "known": dict(known_fingerprints or {}),
            }
        )
        if self.hold is not None:
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return self.reports[min(len(self.asked), len(self.reports)) - 1]

    async def compare(
        self, *, earlier: tuple[GitSource, int], later: tuple[GitSource, int]
    ) -> ComparisonReport:
        """Look the answer up."""
        self.compared.append((later[0], earlier[0]))
        return self.comparisons[min(len(self.compared), len(self.comparisons)) - 1]


class ListProposer:
    """Proposes what it was given."""

    def __init__(self, *candidates: Candidate | Unusable) -> None:
        self._left = list(candidates)

    async def propose(self) -> Candidate | Unusable | None:
        """The next one."""
        return self._left.pop(0) if self._left else None

    async def rest(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class Recorder:
    """Subscribes to everything that a node may publish, and keeps it."""

    def __init__(self, bus: Bus) -> None:
        self._events = bus.subscribe(
            CandidateVerified,
            CommitmentRecorded,
            SubmissionRevealed,
            KernelJudged,
            LogitsChecked,
            WeightsSet,
            BlockAdvanced,
        )
        self.seen: list[Event] = []

    async def run(self) -> None:
        """Take events until cancelled."""
        async for event in self._events:
            self.seen.append(event)

    def of(self, kind: type[Event]) -> list[Any]:
        """Events of one type."""
        return [event for event in self.seen if isinstance(event, kind)]


class Miner:
    """Starts a miner's components, kills them without ceremony, and starts them anew on the same journal."""

    def __init__(self, settings: Settings, subnet: Subnet, key: Any) -> None:
        self.settings = settings
        self.subnet = subnet
        self.key = key
        self.clock = SystemClock()
        self.proposer: Proposer = ListProposer()
        self.referee = ScriptedReferee()
        self.tasks: list[asyncio.Task[None]] = []
        self.anchor: Anchor | None = None
        self.journal: Journal
        self.ledger: SubmissionLedger
        self.api: SubnetApi
        self.bus: Bus
        self.recorder: Recorder
        self.fork: Fork
        self.history: History

    def change(self, **values: Any) -> None:
        """Set other values in [miner]."""
        section = MinerSection.model_validate(self.settings.miner.model_dump() | values)
        self.settings = self.settings.model_copy(update={"miner": section})

    async def open(self) -> None:
        """Open what the components stand on; nothing runs yet."""
        self.bus = Bus(patience_s=5.0)
        self.journal = Journal(self.settings.node.data_dir / "miner.sqlite", KEY)
        self.ledger = SubmissionLedger(self.journal)
        self.api = open_api(self.settings, self.key, self.clock)
        self.fork = open_fork(self.settings, self.clock)
        self.recorder = Recorder(self.bus)
        self.coordinator = CommitRevealCoordinator(
            ledger=self.ledger,
            api=self.api,
            fork=self.fork,
            bus=self.bus,
            clock=self.clock,
            is_direct=self.settings.miner.submission == "direct",
            anchor=self.anchor,
        )
        self.history = History(self.settings.node.data_dir / HISTORY_FILE, self.clock)
        target = Target(self.settings.miner.target_sequence_length)
        self.optimiser = Optimiser(
            settings=self.settings.miner,
            proposer=self.proposer,
            measuring=Measuring(self.referee, self.settings.node.data_dir / "work"),
            history=self.history,
            target=target,
            chooser=None,
            clock=self.clock,
        )
        self.submitter = Submitter(
            settings=self.settings.miner,
            target=target,
            history=self.history,
            submissions=self.ledger,
            api=self.api,
            fork=self.fork,
            bus=self.bus,
            clock=self.clock,
        )
        self.follower = VerdictFollower(
            ledger=self.ledger, api=self.api, bus=self.bus, clock=self.clock, poll_s=0.1
        )

    async def start(self, *names: str) -> None:
        """Open and run: by default coordinator and follower; the chain's head is told."""
        await self.open()
        self.run(*(names or ("coordinator", "follower")))
        await self.tick(0)

    def run(self, *names: str) -> None:
        """Run the named parts."""
        parts = [self.recorder, *(getattr(self, name) for name in names)]
        self.tasks += [asyncio.create_task(part.run()) for part in parts]

    async def tick(self, blocks: int) -> BlockHeight:
        """Let blocks pass and tell the components."""
        height = self.subnet.chain.advance(blocks) if blocks else self.subnet.chain.height()
        await self.bus.publish(BlockAdvanced(height=height, previous=None))
        return height

    async def offer(self, text: str = "x = 1\n", **changes: Any) -> CandidateVerified:
        """Hand a candidate over, as the optimiser does."""
        commit_hash = await self.fork.commit(files(text), "Kernels: test")
        values: dict[str, Any] = {
            "fork_url": self.fork.url,
            "commit_hash": commit_hash,
            "target_sequence_length": TARGET,
            "tokens_per_sec": 1000.0,
            "claim_tokens_per_sec": 950.0,
            "vram_mb": None,
        }
        event = CandidateVerified(**(values | changes))
        await self.bus.publish(event)
        return event

    async def kill(self) -> None:
        """End everything at once, as far as the disk is concerned like SIGKILL between two writes."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        if hasattr(self, "api"):
            await self.api.close()
            with contextlib.suppress(RuntimeError):
                await self.journal.close()
            with contextlib.suppress(RuntimeError):
                await self.history.close()

    def check(self) -> None:
        """Raise what a part has failed with."""
        for task in self.tasks:
            if task.done():
                task.result()
                raise AssertionError(f"{task} came to an end")

    async def until(self, condition: Callable[[], Awaitable[Any]], timeout_s: float = 40.0) -> Any:
        """Wait for a condition to give something true; a part that fails meanwhile raises."""
        async with asyncio.timeout(timeout_s):
            while not (found := await condition()):
                self.check()
                await asyncio.sleep(0.02)
        return found

    async def until_stage(self, *stages: str, count: int = 1) -> Any:
        """Wait until all submissions, at least `count`, are at one of the stages; returns the newest."""

        async def reached() -> Any:
            submissions = await self.ledger.all()
            are_all = len(submissions) >= count and all(one.stage in stages for one in submissions)
            return submissions[-1] if are_all else None

        return await self.until(reached)
