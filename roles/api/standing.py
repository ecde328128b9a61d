"""Who is ahead: the ranking over all verdicts, computed anew when something changed."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Final

from sqlalchemy.ext.asyncio import AsyncConnection

from node.clock import Clock
from protocol.ranking import Entry, Place, rank
from protocol.types import Hotkey, SubmissionId
from protocol.verdicts import LogitOutcome, Status
from roles.api import store_evaluations, store_logits
from roles.api.chain_view import ChainView
from roles.api.consensus import LogitStanding, Pooled, logit_horizon, pool_logit_checks, pool_verdicts
from roles.api.database import Database

MAX_AGE_S: Final = 2.0
"""Other replicas write too, logit checks grow old, hotkeys come and go."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The ranking and what it was made of."""

    places: Sequence[Place] = ()
    pooled: Mapping[SubmissionId, Pooled] = field(default_factory=dict)
    logits: Mapping[Hotkey, LogitStanding] = field(default_factory=dict)

    def place_of(self, submission_id: int) -> int | None:
        """The submission's place, None when it is not ranked."""
        return next(
            (place.place for place in self.places if place.entry.submission_id == submission_id), None
        )

    def logit_outcome(self, hotkey: str) -> LogitOutcome:
        """The hotkey's logit verification; pending when nobody has looked lately."""
        standing = self.logits.get(Hotkey(hotkey))
        return LogitOutcome.PENDING if standing is None else standing.outcome


async def compute_standing(
    connection: AsyncConnection, now: datetime, registered: Collection[Hotkey] | None
) -> Standing:
    """Rank the submissions of registered hotkeys (of all when `registered` is None: the chain is unknown)."""
    logits = pool_logit_checks(await store_logits.list_latest(connection, logit_horizon(now)))
    rows = await store_evaluations.list_rankable(connection)
    pooled: dict[SubmissionId, Pooled] = {}
    entries: list[Entry] = []
    for number, group in groupby(
        sorted(rows, key=lambda row: int(row.submission_id)), lambda row: row.submission_id
    ):
        found = list(group)
        outcome = pool_verdicts(found)
        if outcome is None:
            continue
        submission_id = SubmissionId(number)
        pooled[submission_id] = outcome
        hotkey = Hotkey(found[0].miner_hotkey)
        is_live = registered is None or hotkey in registered
        standing = logits.get(hotkey)
        has_logits = standing is not None and standing.outcome is LogitOutcome.PASSED
        if outcome.status is Status.PASSED and outcome.tokens_per_sec is not None and is_live and has_logits:
            entries.append(
                Entry(
                    submission_id=submission_id,
                    hotkey=hotkey,
                    target_sequence_length=found[0].target_sequence_length,
                    tokens_per_sec=outcome.tokens_per_sec,
                    code_fixed_at=found[0].code_fixed_at,
                    round_number=found[0].round_number,
                )
            )
    return Standing(places=rank(entries), pooled=pooled, logits=logits)


class StandingKeeper:
    """Keeps the standing until a write of this process, or a moment's age, makes it doubtful."""

    def __init__(self, database: Database, chain: ChainView, clock: Clock) -> None:
        self._database = database
        self._chain = chain
        self._clock = clock
        self._lock = asyncio.Lock()
        self._standing = Standing()
        self._revision = -1
        self._at_s = float("-inf")

    async def get(self) -> Standing:
        """The standing as of now. Raises DatabaseUnavailable."""
        async with self._lock:
            if self._revision != self._database.revision or self._clock.monotonic() - self._at_s > MAX_AGE_S:
                revision, at_s = self._database.revision, self._clock.monotonic()
                self._standing = await self._database.read(self.compute)
                self._revision, self._at_s = revision, at_s
            return self._standing

    async def compute(self, connection: AsyncConnection) -> Standing:
        """The standing inside a transaction of the caller's."""
        metagraph = self._chain.last_metagraph
        registered = None if metagraph is None else metagraph.neurons.keys()
        return await compute_standing(connection, self._clock.now(), registered)
