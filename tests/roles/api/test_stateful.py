"""Commit, reveal, verdict, ranking: random histories against a model in memory."""

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    rule,
    run_state_machine_as_test,
)

from node.chain.local import LocalChain
from node.settings_model import ApiSection, ChainSection, NodeSection, Settings, WalletSection
from protocol.messages import CommitSubmissionAnswer, LeaseAnswer
from protocol.ranking import Entry, rank
from protocol.types import Hotkey, SubmissionId
from protocol.verdicts import Fault, LogitOutcome, Status
from tests.roles.api.harness import (
    TARGET,
    Client,
    Code,
    Key,
    commit_message,
    key,
    registration,
    reveal_message,
    running,
    submit_message,
)

T = TypeVar("T")

MINERS = ("miner", "sibling", "rival")
VALIDATORS = ("validator", "validator2")
DELAY, WINDOW = 10, 20
EXAMPLES, STEPS = 15, 40
MEASURED = st.sampled_from((None, 1000.0, 1010.0, 2000.0, 3000.0))
LOGITS = (LogitOutcome.PASSED, LogitOutcome.PASSED, LogitOutcome.PASSED, LogitOutcome.FAILED)


@dataclass
class Known:
    """What the model knows of one submission."""

    number: int
    miner: str
    code: str
    commit_height: int | None = None
    is_revealed: bool = False
    measured: dict[str, float | None] = field(default_factory=dict)
    """By validator; None for a kernel that failed."""
    is_settled: bool = False

    @property
    def pooled(self) -> float | None:
        """The median of what passed, when more than half did: both validators have the same stake."""
        passed = [value for value in self.measured.values() if value is not None]
        return median(passed) if 2 * len(passed) > len(self.measured) else None


class Subnet(RuleBasedStateMachine):
    """One API with its subnet, and the model of both."""

    leases: Bundle[tuple[str, LeaseAnswer]] = Bundle("leases")
    loop: asyncio.AbstractEventLoop

    def __init__(self) -> None:
        super().__init__()
        self.stack = AsyncExitStack()
        self.known: dict[int, Known] = {}
        self.leased: set[tuple[str, int]] = set()
        self.active: set[str] = set()
        self.logits: dict[str, LogitOutcome] = {}
        self.fixed_at: dict[int, datetime] = {}
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        self.chain = LocalChain.create(
            folder / "chain.sqlite",
            block_time_s=3600.0,
            netuid=24,
            owner_hotkey=None,
            neurons=[
                *(registration(name, f"cold {name}", 5000.0, permit=True) for name in VALIDATORS),
                *(registration(name, f"cold {name}") for name in MINERS),
            ],
        )
        own = Settings(
            node=NodeSection(data_dir=folder / "data", drain_s=1.0),
            chain=ChainSection(network="local", local_state=folder / "chain.sqlite"),
            wallet=WalletSection(path=folder / "wallets"),
            api=ApiSection(
                port=0,
                lease_s=86_400.0,
                blocks_until_reveal=DELAY,
                reveal_window_blocks=WINDOW,
                writes_per_minute_per_ip=100_000,
                writes_per_minute_per_hotkey=100_000,
            ),
        )
        self.api: Client = self.call(self.stack.enter_async_context(running(own)))

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the loop where the API lives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout=60)

    def teardown(self) -> None:
        """Stop the API."""
        self.call(self.stack.aclose())

    @rule(miner=st.sampled_from(MINERS), code=st.integers(0, 5))
    def commit(self, miner: str, code: int) -> None:
        """The same commitment again is the same record."""
        name = f"commit {code}"
        earlier = next((one for one in self.known.values() if (one.miner, one.code) == (miner, name)), None)
        message = commit_message(key(miner), Code(name).bound_hash(key(miner)))
        reply = self.call(self.api.post("/commit_submission", message))
        if earlier is None and self.is_banned(miner):
            assert reply.status == 403
            return
        assert reply.status == 200, reply
        answer = CommitSubmissionAnswer.model_validate(reply.body)
        if earlier is not None:
            assert answer.submission_id == earlier.number
            return
        assert answer.submission_id not in self.known
        height = int(self.chain.height())
        assert answer.reveal_block == height + DELAY
        self.known[answer.submission_id] = Known(answer.submission_id, miner, name, height)

    @rule(blocks=st.sampled_from((1, DELAY - 1, DELAY, WINDOW)))
    def advance(self, blocks: int) -> None:
        """Time passes on the chain."""
        self.chain.advance(blocks)

    @rule(data=st.data())
    def reveal(self, data: st.DataObject) -> None:
        """Early, in time, late, twice."""
        committed = [one for one in self.known.values() if one.commit_height is not None]
        if not committed:
            return
        one = data.draw(st.sampled_from(committed))
        assert one.commit_height is not None
        message = reveal_message(key(one.miner), one.number, Code(one.code))
        status = self.call(self.api.post("/reveal_submission", message)).status
        past = int(self.chain.height()) - one.commit_height
        expected = 425 if past < DELAY else 200 if past < DELAY + WINDOW else 410
        assert status == (200 if one.is_revealed else expected)
        one.is_revealed = one.is_revealed or status == 200

    @rule(miner=st.sampled_from(MINERS), code=st.integers(0, 9))
    def submit(self, miner: str, code: int) -> None:
        """One waits at a time; the same one again is the same record."""
        name = f"direct {code}"
        earlier = next((one for one in self.known.values() if (one.miner, one.code) == (miner, name)), None)
        reply = self.call(self.api.post("/submit_kernel", submit_message(key(miner), Code(name))))
        if earlier is not None:
            assert reply.body["submission_id"] == earlier.number
        elif self.is_banned(miner):
            assert reply.status == 403
        elif any(one.miner == miner and one.is_revealed and not one.measured for one in self.known.values()):
            assert reply.status == 409
        else:
            assert reply.status == 200, reply
            number = reply.body["submission_id"]
            self.known[number] = Known(number, miner, name, is_revealed=True)

    def is_banned(self, miner: str) -> bool:
        """Whether the miner may submit nothing: all miners have one address."""
        return self.strikes() >= 5 and not self.has_passed(miner)

    def strikes(self) -> int:
        """Settled submissions on which every validator that judged found the miner's fault."""
        return sum(
            one.is_settled and all(value is None for value in one.measured.values())
            for one in self.known.values()
        )

    def has_passed(self, miner: str) -> bool:
        """Whether a settled submission of the miner has passed."""
        return any(
            one.miner == miner and one.is_settled and one.pooled is not None for one in self.known.values()
        )

    @rule(target=leases, validator=st.sampled_from(VALIDATORS))
    def lease(self, validator: str) -> tuple[str, LeaseAnswer] | None:
        """One of those that this validator has neither judged nor in work; none when there is none."""
        lease = self.call(self.api.lease(key(validator)))
        waiting = {
            one.number
            for one in self.known.values()
            if one.is_revealed
            and validator not in one.measured
            and (validator, one.number) not in self.leased
        }
        if lease is None:
            assert not waiting
            return None
        assert lease.submission_id in waiting
        self.leased.add((validator, lease.submission_id))
        self.fixed_at[lease.submission_id] = lease.code_fixed_at
        return validator, lease

    @rule(taken=consumes(leases), measured=MEASURED)
    def judge(self, taken: tuple[str, LeaseAnswer] | None, measured: float | None) -> None:
        """Pass or fail."""
        if taken is None:
            return
        validator, lease = taken
        figures: dict[str, Any] = {"measured_tokens_per_sec": measured}
        if measured is None:
            figures = {"status": Status.CRASHED, "fault": Fault.MINER}
        assert self.call(self.api.judge(key(validator), lease, **figures)).status == 200
        self.known[lease.submission_id].measured[validator] = measured
        self.active.add(validator)
        self.settle()

    @rule(validator=st.sampled_from(VALIDATORS), measured=MEASURED)
    def lease_and_judge(self, validator: str, measured: float | None) -> None:
        """What an idle validator does."""
        self.judge(self.lease(validator), measured)

    @rule(miner=st.sampled_from(MINERS), outcome=st.sampled_from(LOGITS))
    def check_logits(self, miner: str, outcome: LogitOutcome) -> None:
        """Only the first validator checks, so that its latest word is what counts."""
        assert self.call(self.api.check_logits(key(VALIDATORS[0]), key(miner), outcome)).status == 200
        self.logits[miner] = outcome
        self.settle()

    def settle(self) -> None:
        """More than half of the stake that judges has judged it."""
        for one in self.known.values():
            if one.measured and 2 * len(one.measured) > len(self.active):
                one.is_settled = True

    @invariant()
    def leaderboard(self) -> None:
        """The board is the ranking of what the model knows."""
        entries = [
            Entry(
                submission_id=SubmissionId(one.number),
                hotkey=Hotkey(_address(one.miner)),
                target_sequence_length=TARGET,
                tokens_per_sec=one.pooled,
                code_fixed_at=self.fixed_at[one.number],
                round_number=1,
            )
            for one in self.known.values()
            if one.is_settled and one.pooled is not None and self.logits.get(one.miner) == LogitOutcome.PASSED
        ]
        expected = [
            (place.place, place.entry.submission_id, place.score) for place in rank(entries, []).places
        ]
        rows = self.call(self.api.get("/leaderboard")).body["rows"]
        assert [(row["place"], row["submission_id"], row["weighted_score"]) for row in rows] == expected

    @invariant()
    def nothing_is_lost(self) -> None:
        """Every submission is there once, and shows its code only when it was judged."""
        rows = self.call(self.api.get("/submissions?limit=500")).body
        assert sorted(row["submission_id"] for row in rows) == sorted(self.known)
        for row in rows:
            assert (row["fork_url"] is not None) == bool(self.known[row["submission_id"]].measured)


def _address(name: str) -> str:
    owner: Key = key(name)
    return str(owner.ss58_address)


async def test_random_histories(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks come all at once here: a height of a second ago would take a reveal that has just expired.
    monkeypatch.setattr("roles.api.chain_view.HEIGHT_MAX_AGE_S", 0.0)

    class OnThisLoop(Subnet):
        loop = asyncio.get_running_loop()

    chosen = settings(
        max_examples=EXAMPLES,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    await asyncio.to_thread(run_state_machine_as_test, OnThisLoop, settings=chosen)
