"""One miner of the soak: watcher, coordinator and journal as in the product, and a diary of its reveals."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.bus import Bus
from node.chain.local import LocalChain
from node.chain.opening import SDK_FOLDER, open_chain
from node.chain.watcher import BlockWatcher
from node.clock import SystemClock
from node.journal import Journal, Record
from node.metrics import Metrics
from node.settings_model import Settings
from protocol.commitments import new_salt
from protocol.events import BlockAdvanced, CandidateVerified, CommitmentRecorded, SubmissionRevealed
from protocol.types import CommitHash, SubmissionId
from roles.api_client import SubnetApi, open_api
from roles.miner.coordinator import CommitRevealCoordinator
from roles.miner.ledger import UNFINISHED, Stage, SubmissionLedger

URL = "https://github.com/soak/flash-linear-attention"
TARGET = 100_000
OFFER_PAUSE_S = 0.05


class PushedAtOnce:
    """A fork whose remote shows every commit."""

    url = URL

    async def publish(self, commit_hash: CommitHash) -> None:
        """Nothing to push."""


@dataclass(slots=True)
class Diary:
    """What happened to one commitment, in seconds of the monotonic clock and in true heights."""

    reveal_block: int
    seen_due_at_s: float | None = None
    first_try_at_s: float | None = None
    first_try_height: int | None = None
    journal_s: float = 0.0
    """Part of the time in between: writing down that the code is public."""
    tries: int = 0
    accepted: int = 0


class TimedJournal(Journal):
    """The journal, which writes down how long it took to note that code is public."""

    def __init__(self, path: Path, miner: "SoakMiner") -> None:
        super().__init__(path, bytes(32), clock=SystemClock())
        self.miner = miner

    async def update(
        self, kind: str, key: str, *, state: str | None = None, data: dict[str, Any] | None = None
    ) -> Record:
        """Update, and note how long it took."""
        began_s = time.monotonic()
        record = await super().update(kind, key, state=state, data=data)
        if state == Stage.PUSHED:
            self.miner.diaries[record.data["submission_id"]].journal_s = time.monotonic() - began_s
        return record


class DiarisedApi(SubnetApi):
    """The API client, which writes down when the coordinator reveals."""

    def __init__(self, api: SubnetApi, miner: "SoakMiner") -> None:
        super().__init__(api._http, api._receiver, api._signer)
        self.miner = miner

    async def reveal(self, submission_id: SubmissionId, **values: Any) -> Any:  # type: ignore[override]
        """Reveal, and note when."""
        diary = self.miner.diaries[submission_id]
        diary.tries += 1
        if diary.first_try_at_s is None:
            diary.first_try_at_s = time.monotonic()
            diary.first_try_height = self.miner.true_chain.height()
        answer = await super().reveal(submission_id, **values)
        diary.accepted += 1
        return answer


@dataclass
class SoakMiner:
    """Keeps `in_flight` commitments under way for as long as `is_offering`."""

    settings: Settings
    key: Any
    true_chain: LocalChain
    in_flight: int
    is_offering: bool = True
    diaries: dict[int, Diary] = field(default_factory=dict)
    blocks: list[tuple[float, int]] = field(default_factory=list)
    _offered: int = 0
    _revealed: int = 0
    _not_due: list[Diary] = field(default_factory=list)
    first_block: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the parts; a part that fails ends the soak."""
        clock, bus, metrics = SystemClock(), Bus(), Metrics()
        chain = open_chain(
            self.settings.chain, clock, metrics=metrics, caches=self.settings.node.data_dir / SDK_FOLDER
        )
        api = DiarisedApi(open_api(self.settings, self.key, clock), self)
        self._bus = bus
        self._events = bus.subscribe(BlockAdvanced, CommitmentRecorded, SubmissionRevealed)
        async with TimedJournal(self.settings.node.data_dir / "miner.sqlite", self) as journal:
            self._ledger = SubmissionLedger(journal)
            coordinator = CommitRevealCoordinator(
                ledger=self._ledger,
                api=api,
                fork=PushedAtOnce(),  # type: ignore[arg-type]
                bus=bus,
                clock=clock,
                is_direct=False,
            )
            watcher = BlockWatcher(chain, bus, clock, unreachable_after_s=300.0, metrics=metrics)
            parts = (coordinator.run(), watcher.run(), self._note(), self._offer())
            tasks = [asyncio.create_task(part) for part in parts]
            yield
            ended = [task for task in tasks if task.done()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task in ended:
                task.result()
        await api.close()
        await chain.close()

    async def revealed(self) -> int:
        """How many the journal has as revealed."""
        return len(await self._ledger.all(Stage.REVEALED))

    def diaries_bytes(self) -> int:
        """Return what this benchmark keeps of its own, which grows with the run."""
        noted = [*self.diaries.values(), *self.blocks]
        objects = [*noted, *(value for pair in self.blocks for value in pair)]
        return sys.getsizeof(self.diaries) + sys.getsizeof(self.blocks) + sum(map(sys.getsizeof, objects))

    async def until_unfinished(self, count: int) -> None:
        """Wait until so many commitments, all of them acknowledged, have their reveal before them."""
        while len(await self._ledger.all(*UNFINISHED)) != count or await self._ledger.all(Stage.DRAFTED):
            await SystemClock().sleep(0.2)

    async def _offer(self) -> None:
        await self.first_block.wait()
        while True:
            if self.is_offering and self._offered - self._revealed < self.in_flight:
                self._offered += 1
                await self._bus.publish(
                    CandidateVerified(
                        fork_url=URL,
                        commit_hash=CommitHash(new_salt()[:40].ljust(40, "0")),
                        target_sequence_length=TARGET,
                        tokens_per_sec=1.0,
                        claim_tokens_per_sec=1.0,
                        vram_mb=None,
                    )
                )
            await asyncio.sleep(OFFER_PAUSE_S)

    async def _note(self) -> None:
        async for event in self._events:
            now_s = time.monotonic()
            if isinstance(event, CommitmentRecorded):
                diary = Diary(event.reveal_block)
                self.diaries[event.submission_id] = diary
                self._not_due.append(diary)
            elif isinstance(event, SubmissionRevealed):
                self._revealed += 1
            elif isinstance(event, BlockAdvanced):
                self.first_block.set()
                self.blocks.append((now_s, event.height))
                for diary in [one for one in self._not_due if event.height >= one.reveal_block]:
                    diary.seen_due_at_s = now_s
                    self._not_due.remove(diary)
