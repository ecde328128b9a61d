"""A client of a running API, and signed messages of every kind, with real hotkeys."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import aiohttp
from bittensor import sp_core
from pydantic import BaseModel
from sqlalchemy import URL, Executable

from node.chain.local import LocalChain, Registration
from node.clock import Clock, SystemClock
from node.http_server import HttpServer
from node.settings_model import Settings
from protocol.auth import sign_request
from protocol.commitments import bound_commitment_hash
from protocol.messages import (
    CommitSubmission,
    CommitSubmissionAnswer,
    Comparison,
    Figures,
    LeaseAnswer,
    LogitCheck,
    RevealSubmission,
    SubmitKernel,
    SubmitKernelAnswer,
    Verdict,
)
from protocol.rules import RULES_VERSION
from protocol.signing import signed
from protocol.types import Coldkey, Hotkey
from protocol.verdicts import Fault, LeadOutcome, LogitOutcome, Status
from roles.api.database import Database, database_url
from roles.api.wiring import build

Key = Any
SALT = "ab" * 16
TARGET = 1_000_000
READ_PATIENCE_S = 30.0
"""The local chain answers: a machine that is slow must not make it look as if it did not."""


def key(name: str) -> Key:
    """A hotkey of that name, always the same."""
    return sp_core.Keypair.create_from_uri(f"//{name}")


def registration(name: str, coldkey: str, stake_tao: float = 0.0, *, permit: bool = False) -> Registration:
    """A neuron on the local chain."""
    return Registration(Hotkey(key(name).ss58_address), Coldkey(key(coldkey).ss58_address), stake_tao, permit)


def digest(text: str) -> str:
    """40 hex digits for a commit hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:40]


class JumpingClock(SystemClock):
    """The machine's clock, set forward or back by a test."""

    shift = timedelta(0)

    def now(self) -> datetime:
        """The time that the machine believes it is."""
        return datetime.now(UTC) + self.shift


@dataclass
class Subnet:
    """The chain and who is on it; blocks come only when a test asks for them."""

    path: Path
    chain: LocalChain
    validator: Key = field(default_factory=lambda: key("validator"))
    validator2: Key = field(default_factory=lambda: key("validator2"))
    poor: Key = field(default_factory=lambda: key("poor"))
    miner: Key = field(default_factory=lambda: key("miner"))
    sibling: Key = field(default_factory=lambda: key("sibling"))
    """Another hotkey of the miner's coldkey."""
    rival: Key = field(default_factory=lambda: key("rival"))
    stranger: Key = field(default_factory=lambda: key("stranger"))


def with_api(settings: Settings, **changes: object) -> Settings:
    """The settings with other values in [api]."""
    return settings.model_copy(update={"api": settings.api.model_copy(update=changes)})


@dataclass
class Reply:
    """An answer as it came."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def detail(self) -> Any:
        """What an error says."""
        return self.body["detail"]


@dataclass
class Client:
    """Calls one running API."""

    url: str
    session: aiohttp.ClientSession
    hotkey: str = ""

    async def send(
        self, method: str, path: str, data: bytes = b"", headers: dict[str, str] | None = None
    ) -> Reply:
        """One request as it stands."""
        async with self.session.request(
            method, self.url + path, data=data or None, headers=headers or {}
        ) as response:
            raw = await response.read()
            is_json = response.content_type == "application/json"
            body = await response.json() if is_json and raw else raw.decode()
            return Reply(response.status, body, dict(response.headers))

    async def get(self, path: str) -> Reply:
        """GET."""
        return await self.send("GET", path)

    async def post(self, path: str, message: BaseModel | bytes, caller: Key | None = None) -> Reply:
        """POST a JSON body, signed as a request when there is a caller."""
        data = message if isinstance(message, bytes) else message.model_dump_json().encode()
        headers = {"Content-Type": "application/json"}
        if caller is not None:
            headers |= self.signature(caller, "POST", path, data)
        return await self.send("POST", path, data, headers)

    def signature(
        self, caller: Key, method: str, path: str, data: bytes, receiver: str | None = None
    ) -> dict[str, str]:
        """btauth/1 headers bound to this API (or another receiver)."""
        return sign_request(caller, method=method, path=path, body=data, receiver=receiver or self.hotkey)

    async def lease(self, validator: Key) -> LeaseAnswer | None:
        """Take the next submission."""
        reply = await self.post("/evaluations/lease", b"", validator)
        assert reply.status in (200, 204), reply
        return LeaseAnswer.model_validate(reply.body) if reply.status == 200 else None

    async def commit(self, miner: Key, code: "Code") -> CommitSubmissionAnswer:
        """Commit to code in the bound form."""
        reply = await self.post("/commit_submission", commit_message(miner, code.bound_hash(miner)))
        assert reply.status == 200, reply
        return CommitSubmissionAnswer.model_validate(reply.body)

    async def submit(self, miner: Key, code: "Code") -> SubmitKernelAnswer:
        """Submit code directly."""
        reply = await self.post("/submit_kernel", submit_message(miner, code))
        assert reply.status == 200, reply
        return SubmitKernelAnswer.model_validate(reply.body)

    async def judge(self, validator: Key, lease: LeaseAnswer, **figures: Any) -> Reply:
        """Hand in a verdict under a lease."""
        message = verdict_message(validator, lease, **figures)
        return await self.post(f"/evaluations/{lease.submission_id}/verdict", message, validator)

    async def compare(
        self,
        validator: Key,
        later: int,
        earlier: int,
        outcome: LeadOutcome = LeadOutcome.CONFIRMED,
        **fields: Any,
    ) -> Reply:
        """Hand in a re-run of two submissions."""
        message = comparison_message(validator, later, earlier, outcome, **fields)
        return await self.post("/comparisons", message, validator)

    async def check_logits(self, validator: Key, miner: Key, outcome: LogitOutcome) -> Reply:
        """Record a logit check."""
        message = logit_message(validator, miner, outcome)
        return await self.post("/record_verification", message, validator)


@dataclass(frozen=True)
class Code:
    """What a miner submits."""

    name: str = "kernel"
    salt: str = SALT
    tokens_per_sec: float = 1000.0
    owner: str = "miner"

    @property
    def url(self) -> str:
        """Where it lies."""
        return f"https://github.com/{self.owner}/fork"

    @property
    def commit_hash(self) -> str:
        """Its commit."""
        return digest(self.name)

    def bound_hash(self, miner: Key) -> str:
        """Its commitment in the bound form."""
        return bound_commitment_hash(self.salt, miner.ss58_address, TARGET, self.url, self.commit_hash)


def commit_message(
    miner: Key, commitment_hash: str, target: int = TARGET, *, is_anchored: bool = False
) -> CommitSubmission:
    """A signed commitment."""
    return signed(
        miner,
        CommitSubmission,
        commitment_hash=commitment_hash,
        target_sequence_length=target,
        is_anchored=is_anchored,
    )


def reveal_message(miner: Key, submission_id: int, code: Code) -> RevealSubmission:
    """A signed reveal."""
    return signed(
        miner,
        RevealSubmission,
        submission_id=submission_id,
        commitment_salt=code.salt,
        fork_url=code.url,
        commit_hash=code.commit_hash,
        tokens_per_sec=code.tokens_per_sec,
    )


def submit_message(miner: Key, code: Code, target: int = TARGET) -> SubmitKernel:
    """A signed direct submission."""
    return signed(
        miner,
        SubmitKernel,
        fork_url=code.url,
        commit_hash=code.commit_hash,
        target_sequence_length=target,
        tokens_per_sec=code.tokens_per_sec,
    )


def verdict_message(validator: Key, lease: LeaseAnswer, **changes: Any) -> Verdict:
    """A signed verdict, passed unless told otherwise."""
    figures = {
        "status": Status.PASSED,
        "fault": Fault.NOBODY,
        "measured_tokens_per_sec": 1200.0,
        "spread": 0.01,
        "cosine_similarity": 0.9999,
        "max_abs_diff": 0.001,
        "gpu": "cpu",
        "versions": {"torch": "2.13.0"},
        "rules_version": RULES_VERSION,
        "evidence": {"reason": "outputs agree"},
        "lease_id": lease.lease_id,
        "submission_id": lease.submission_id,
    }
    assert set(figures) | set(changes) <= set(Figures.model_fields) | set(Verdict.model_fields)
    return signed(validator, Verdict, **{**figures, **changes})


def comparison_message(
    validator: Key, later: int, earlier: int, outcome: LeadOutcome = LeadOutcome.CONFIRMED, **fields: Any
) -> Comparison:
    """A signed re-run."""
    ratios = {LeadOutcome.CONFIRMED: 1.5, LeadOutcome.NOT_CONFIRMED: 1.01}
    plain = {
        "ratio": ratios.get(outcome),
        "gpu": "cpu",
        "versions": {"torch": "2.13.0"},
        "rules_version": RULES_VERSION,
        "evidence": {"reason": "scripted"},
    }
    return signed(
        validator,
        Comparison,
        outcome=outcome,
        later_submission_id=later,
        earlier_submission_id=earlier,
        **{**plain, **fields},
    )


def logit_message(
    validator: Key, miner: Key, outcome: LogitOutcome, checked_at: datetime | None = None
) -> LogitCheck:
    """A signed logit check."""
    return signed(
        validator,
        LogitCheck,
        miner_hotkey=miner.ss58_address,
        outcome=outcome,
        checked_at=checked_at or datetime.now(UTC),
    )


def url_of(settings: Settings) -> URL:
    """Where the API of these settings keeps its data."""
    secret = settings.api.database_url
    return database_url(secret.get_secret_value() if secret else None, settings.node.data_dir)


async def stored(settings: Settings, query: Executable) -> list[Any]:
    """What a query finds in the API's database."""
    database = Database(url_of(settings))
    try:
        return await database.read(lambda connection: list(connection.execute(query).all()))
    finally:
        await database.close()


@asynccontextmanager
async def running(settings: Settings, clock: Clock | None = None) -> AsyncIterator[Client]:
    """Run the role's whole graph and give a client for it."""
    with patch("roles.api.chain_view.READ_PATIENCE_S", READ_PATIENCE_S):
        async with _running(settings, clock) as client:
            yield client


@asynccontextmanager
async def _running(settings: Settings, clock: Clock | None) -> AsyncIterator[Client]:
    graph = await build(settings, clock)
    tasks: list[asyncio.Task[None]] = []
    try:
        server = next(part for part in graph.components if isinstance(part, HttpServer))
        await server.start()
        tasks = [asyncio.create_task(part.run(), name=part.name) for part in graph.components]
        async with aiohttp.ClientSession() as session:
            client = Client(f"http://127.0.0.1:{server.port}", session)
            client.hotkey = (await client.get("/info")).body["hotkey"]
            yield client
        failed = [task for task in tasks if task.done()]
        assert not failed, failed
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for close in reversed(graph.closers):
            await close()


async def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait for an awaitable condition to give something true, and return it."""
    async with asyncio.timeout(timeout_s):
        while not (found := await condition()):
            await asyncio.sleep(0.05)
    return found
