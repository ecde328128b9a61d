"""A validator in pieces: real journal, API client, chain and components; referee and miners scripted."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from node.bus import Bus
from node.chain import AxonAddress, Chain, open_chain
from node.clock import Clock, SystemClock
from node.journal import Journal
from node.metrics import Metrics
from node.settings_model import Settings
from protocol.events import BlockAdvanced
from protocol.messages import EvaluationReport, Figures, LeaseAnswer, LogitCheck
from protocol.types import BlockHeight, Hotkey
from protocol.verdicts import LogitOutcome
from roles.api_client import SubnetApi, open_api
from roles.validator.comparison_store import ComparisonStore
from roles.validator.evaluation_loop import EvaluationLoop
from roles.validator.leads import Leads
from roles.validator.logit_challenger import LogitChallenger
from roles.validator.logits import LogitResult
from roles.validator.verdict_sender import VerdictSender
from roles.validator.verdict_store import VerdictStore
from roles.validator.weight_setter import WeightSetter
from tests.roles.api.harness import Subnet
from tests.roles.miner.harness import KEY, TARGET, Recorder, ScriptedReferee, report

START = datetime(2026, 1, 1, tzinfo=UTC)


def result(outcome: LogitOutcome = LogitOutcome.PASSED, reason: str = "scripted") -> LogitResult:
    """What a logit check might find."""
    return LogitResult(outcome=outcome, reason=reason, step=7, cosine_similarity=1.0, max_abs_diff=0.0)


@dataclass
class ScriptedVerifier:
    """Answers with the given results in turn, the last one for ever; an exception is raised."""

    results: Sequence[LogitResult | Exception] = field(default_factory=lambda: [result()])
    asked: list[tuple[Hotkey, AxonAddress | None]] = field(default_factory=list)

    async def check(self, hotkey: Hotkey, axon: AxonAddress | None) -> LogitResult:
        """Look the answer up."""
        self.asked.append((hotkey, axon))
        found = self.results[min(len(self.asked), len(self.results)) - 1]
        if isinstance(found, Exception):
            raise found
        return found


class Wallet:
    """Holds a hotkey, as far as the chain needs it."""

    def __init__(self, hotkey: Any) -> None:
        self.hotkey = hotkey


def lease(
    number: int,
    hotkey: str,
    *,
    minutes: float = 0.0,
    target: int = TARGET,
    round_number: int = 1,
    commit_hash: str | None = None,
) -> LeaseAnswer:
    """A lease on a submission whose code was fixed that many minutes after the start."""
    return LeaseAnswer(
        lease_id=f"lease-{number}-{minutes}",
        submission_id=number,
        miner_hotkey=hotkey,
        fork_url="https://github.com/a/b",
        commit_hash=commit_hash or f"{number:040x}",
        target_sequence_length=target,
        claimed_tokens_per_sec=1.0,
        code_fixed_at=START + timedelta(minutes=minutes),
        round_number=round_number,
        expires_at=START,
        heartbeat_s=20.0,
    )


class Validator:
    """Starts a validator's components, kills them without ceremony, and starts them anew."""

    def __init__(self, settings: Settings, subnet: Subnet) -> None:
        self.settings = settings
        self.subnet = subnet
        self.clock: Clock = SystemClock()
        self.referee = ScriptedReferee()
        self.verifier = ScriptedVerifier()
        self.is_local_chain = True
        self.silent: set[Hotkey] = set()
        self.confirmed: list[set[Hotkey]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.journal: Journal
        self.store: VerdictStore
        self.api: SubnetApi
        self.chain: Chain
        self.bus: Bus
        self.recorder: Recorder

    async def open(self) -> None:
        """Open what the components stand on; nothing runs yet."""
        own = self.settings.validator
        self.bus = Bus(patience_s=5.0)
        self.metrics = Metrics(role="validator")
        self.journal = Journal(self.settings.node.data_dir / "validator.sqlite", KEY)
        self.store = VerdictStore(self.journal)
        await self.store.load()
        self.api = open_api(self.settings, self.subnet.validator, SystemClock())
        self.chain = open_chain(self.settings.chain, SystemClock())
        self.recorder = Recorder(self.bus)
        self.comparisons = ComparisonStore(self.journal, self.store.commit_hash)
        await self.comparisons.load()
        self.leads = Leads(
            settings=self.settings,
            api=self.api,
            store=self.store,
            comparisons=self.comparisons,
            clock=self.clock,
        )
        self.sender = VerdictSender(api=self.api, store=self.store, comparisons=self.comparisons)
        self.loop = self.make_loop(self.referee)
        self.challenger = LogitChallenger(
            verifier=self.verifier,
            store=self.store,
            api=self.api,
            chain=self.chain,
            bus=self.bus,
            clock=self.clock,
            interval_s=own.logit_interval_s,
            random_source=random.Random(7),
        )
        self.setter = WeightSetter(
            store=self.store,
            leads=self.leads,
            chain=self.chain,
            wallet=Wallet(self.subnet.validator),
            bus=self.bus,
            clock=self.clock,
            metrics=self.metrics,
            confirm=self.confirm,
            interval_blocks=own.weights_interval_blocks,
            is_local_chain=self.is_local_chain,
        )

    def make_loop(self, referee: ScriptedReferee, *, is_device_missing: bool = False) -> EvaluationLoop:
        """An evaluation loop on the referee's device."""
        return EvaluationLoop(
            settings=self.settings,
            api=self.api,
            referee=referee,
            store=self.store,
            sender=self.sender,
            leads=self.leads,
            bus=self.bus,
            clock=self.clock,
            metrics=self.metrics,
            is_device_missing=is_device_missing,
        )

    async def confirm(self, hotkeys: Collection[Hotkey]) -> set[Hotkey]:
        """What the setter asks before it pays; `silent` did not answer."""
        self.confirmed.append(set(hotkeys))
        return self.silent & set(hotkeys)

    async def start(self, *names: str) -> None:
        """Open, and run the named parts."""
        await self.open()
        self.run(*names)

    def run(self, *names: str) -> None:
        """Run the named parts."""
        parts = [self.recorder, *(getattr(self, name) for name in names)]
        self.tasks += [asyncio.create_task(part.run()) for part in parts]

    async def tick(self, blocks: int) -> BlockHeight:
        """Let blocks pass and tell the components."""
        height = self.subnet.chain.advance(blocks) if blocks else self.subnet.chain.height()
        await self.bus.publish(BlockAdvanced(height=height, previous=None))
        return height

    async def judge(
        self, number: int, key: Any, given: EvaluationReport | None = None, **of_lease: Any
    ) -> None:
        """Put a verdict into the store, as the evaluation loop does."""
        given = given or report()
        leased = lease(number, key.ss58_address, **of_lease)
        verdict = self.api.sign_verdict(
            **{name: getattr(given.figures, name) for name in Figures.model_fields},
            lease_id=leased.lease_id,
            submission_id=number,
        )
        await self.store.put_verdict(verdict, leased)

    async def check(
        self, key: Any, outcome: LogitOutcome = LogitOutcome.PASSED, *, at: datetime | None = None
    ) -> LogitCheck:
        """Put a logit check into the store, as the challenger does."""
        moment = at or self.clock.now()
        made = self.api.sign_logit_check(miner_hotkey=key.ss58_address, outcome=outcome, checked_at=moment)
        pending_since = moment if outcome is LogitOutcome.PENDING else None
        await self.store.put_logit_check(made, pending_since=pending_since)
        return made

    async def settle_leads(self) -> None:
        """Have every open lead confirmed, as the evaluation loop does."""
        while await self.leads.compare_next(self.referee):
            pass

    async def kill(self) -> None:
        """End everything at once."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.tasks = []
        if hasattr(self, "api"):
            await self.api.close()
            await self.chain.close()
            with contextlib.suppress(RuntimeError):
                await self.journal.close()

    def ensure_running(self) -> None:
        """Raise what a part has failed with."""
        for task in self.tasks:
            if task.done():
                task.result()
                raise AssertionError(f"{task} came to an end")

    async def until(self, condition: Callable[[], Awaitable[Any]], timeout_s: float = 40.0) -> Any:
        """Wait for a condition to give something true; a part that fails meanwhile raises."""
        async with asyncio.timeout(timeout_s):
            while not (found := await condition()):
                self.ensure_running()
                await asyncio.sleep(0.02)
        return found
