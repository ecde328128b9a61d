"""Who is ahead: the ranking over all settled submissions, computed anew when something changed."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sqlalchemy import Connection

from node.clock import Clock
from node.logs import get_logger
from protocol.leagues import weighted_score
from protocol.ranking import Entry, Place, Ranking, rank
from protocol.types import Hotkey, SubmissionId
from protocol.verdicts import LogitOutcome
from roles.api import store_comparisons, store_logits, store_standing
from roles.api.chain_view import ChainView
from roles.api.consensus import LogitStanding, Stakes, logit_horizon, pool_comparisons, pool_logit_checks
from roles.api.database import Database, DatabaseUnavailable, Effect
from roles.api.remembered import Remembered
from roles.api.store_standing import Figures
from roles.api.tables import Row

MAX_AGE_S: Final = 60.0
"""Logit checks grow old without anybody's writing."""
LARGE: Final = 2_000
"""With more entries than this, readers get the standing before while the next is being computed."""
REST: Final = 4.0
"""After computing a large one, rest so many times as long: it takes a second of the processor at 100,000."""
CHUNK: Final = 2_000
"""Entries read at a time, so that other requests are answered in between."""

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """The ranking and what it was made of."""

    ranking: Ranking = field(default_factory=Ranking)
    logits: Mapping[Hotkey, LogitStanding] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    entries: int = 0
    """Submissions that were ranked."""

    @property
    def places(self) -> Sequence[Place]:
        """The places of the ranking."""
        return self.ranking.places

    def place_of(self, submission_id: int) -> int | None:
        """The submission's place, None when it is not ranked."""
        return next(
            (place.place for place in self.places if place.entry.submission_id == submission_id), None
        )

    def logit_outcome(self, hotkey: str) -> LogitOutcome:
        """The hotkey's logit verification; pending when nobody has looked lately."""
        standing = self.logits.get(Hotkey(hotkey))
        return LogitOutcome.PENDING if standing is None else standing.outcome


@dataclass(frozen=True, slots=True)
class _Basis:
    """What a standing rests on; with an equal one it need not be computed again."""

    version: int
    registered: frozenset[str] | None


class StandingKeeper:
    """Keeps the standing until a write, or a change on the chain, makes it doubtful."""

    def __init__(
        self, database: Database, chain: ChainView, clock: Clock, *, min_validator_stake_tao: float
    ) -> None:
        self._database = database
        self._chain = chain
        self._clock = clock
        self._min_stake_tao = min_validator_stake_tao
        self._remembered = Remembered(self._refresh, partial(database.revision, Effect.RANKED), clock)
        self._basis: _Basis | None = None
        self._computed_at_s = float("-inf")
        self._background: asyncio.Task[None] | None = None
        self._rests_until_s = float("-inf")

    async def get(self) -> Standing:
        """The standing as of now; a large one may be that of a moment ago. Raises DatabaseUnavailable."""
        known = self._remembered.value
        if known is None or known.entries <= LARGE:
            return await self._remembered.get()
        is_busy = self._background is not None and not self._background.done()
        if not (is_busy or self._remembered.is_fresh() or self._clock.monotonic() < self._rests_until_s):
            self._background = asyncio.create_task(self._refresh_behind(), name="standing")
        return known

    async def _refresh_behind(self) -> None:
        started_s = self._clock.monotonic()
        try:
            await self._remembered.get()
        except DatabaseUnavailable as error:
            _log.warning("the standing cannot be computed: the last one is shown", error=str(error))
        now_s = self._clock.monotonic()
        self._rests_until_s = now_s + REST * (now_s - started_s)

    async def close(self) -> None:
        """Stop computing."""
        if self._background is not None:
            self._background.cancel()
            await asyncio.wait({self._background})

    async def _refresh(self) -> Standing:
        metagraph = self._chain.last_metagraph
        registered = None if metagraph is None else frozenset(metagraph.neurons)
        now_s = self._clock.monotonic()
        basis = _Basis(await self._database.read(store_standing.find_version), registered)
        known = self._remembered.value
        if known is not None and basis == self._basis and now_s - self._computed_at_s < MAX_AGE_S:
            return known
        logits = await self._database.read(self._logits)
        outcomes = await self._database.read(store_comparisons.list_outcomes)
        rows: list[Row] = []
        last_id: int | None = 0
        # Not one snapshot: what changes meanwhile raises the version, and the next look sees that.
        while last_id is not None:
            chunk = await self._database.read(_chunk_reader(last_id))
            rows.extend(chunk)
            last_id = chunk[-1].id if len(chunk) == CHUNK else None
        figures = await self._database.read(store_standing.find_figures)
        # In another thread when it takes long: requests are answered meanwhile.
        found = rows, outcomes, self._stakes(), logits, registered, figures
        standing = await asyncio.to_thread(_rank, *found) if len(rows) > LARGE else _rank(*found)
        self._basis, self._computed_at_s = basis, now_s
        return standing

    def compute(self, connection: Connection) -> Standing:
        """The standing inside a transaction of the caller's."""
        metagraph = self._chain.last_metagraph
        registered = None if metagraph is None else frozenset(metagraph.neurons)
        rows = store_standing.list_ranked(connection)
        outcomes = store_comparisons.list_outcomes(connection)
        figures = store_standing.find_figures(connection)
        return _rank(rows, outcomes, self._stakes(), self._logits(connection), registered, figures)

    def _logits(self, connection: Connection) -> dict[Hotkey, LogitStanding]:
        checks = store_logits.list_latest(connection, logit_horizon(self._clock.now()))
        return pool_logit_checks(checks, self._stakes())

    def _stakes(self) -> Stakes:
        return self._chain.stakes(self._min_stake_tao)


def _chunk_reader(last_id: int) -> Callable[[Connection], Sequence[Row]]:
    return lambda connection: store_standing.list_ranked(connection, after=last_id, limit=CHUNK)


def _rank(
    rows: Sequence[Row],
    outcomes: Sequence[Row],
    stakes: Stakes,
    logits: Mapping[Hotkey, LogitStanding],
    registered: frozenset[str] | None,
    figures: Figures,
) -> Standing:
    """Rank the submissions of registered hotkeys (of all when `registered` is None: the chain is unknown)."""
    live = {
        hotkey
        for hotkey, standing in logits.items()
        if standing.outcome is LogitOutcome.PASSED and (registered is None or hotkey in registered)
    }
    entries = [
        Entry(
            submission_id=SubmissionId(row.id),
            hotkey=Hotkey(row.miner_hotkey),
            target_sequence_length=row.target_sequence_length,
            tokens_per_sec=row.pooled_tokens_per_sec,
            code_fixed_at=row.code_fixed_at,
            round_number=row.round_number,
        )
        for row in rows
        if row.miner_hotkey in live
    ]
    led = {row.earlier_submission_id for row in outcomes}
    scores = {
        SubmissionId(row.id): weighted_score(row.pooled_tokens_per_sec, row.target_sequence_length)
        for row in rows
        if row.id in led
    }
    compared = pool_comparisons(outcomes, stakes, scores)
    return Standing(ranking=rank(entries, compared), logits=logits, figures=figures, entries=len(entries))
