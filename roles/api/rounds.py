"""Rounds of the competition: one is open at any time, closed when due, exactly once, with its winner."""

import asyncio
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import Connection

from node.clock import Clock
from node.logs import get_logger
from protocol.types import BlockHeight
from roles.api import store_rounds
from roles.api.chain_view import ChainView
from roles.api.database import Database, DatabaseUnavailable, Effect
from roles.api.standing import StandingKeeper
from roles.api.tables import Row

LOOK_S: Final = 30.0
"""Longest sleep: a clock that jumps, or another replica, must not leave a due round open for longer."""

_log = get_logger(__name__)


class RoundKeeper:
    """Component that closes rounds when due; writers ask for `current` and so never miss an end.

    `round_s`: length of a round in seconds.
    """

    name = "round-keeper"

    def __init__(
        self, database: Database, standing: StandingKeeper, chain: ChainView, clock: Clock, *, round_s: float
    ) -> None:
        self._database = database
        self._standing = standing
        self._chain = chain
        self._clock = clock
        self._round_s = round_s
        self._current: Row | None = None
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        """Close what falls due, for ever."""
        while True:
            try:
                current = await self.current()
            except DatabaseUnavailable as error:
                _log.warning("rounds cannot be looked at", error=str(error))
                await self._clock.sleep(1.0)
                continue
            left_s = (current.end_time - self._clock.now()).total_seconds()
            await self._clock.sleep(min(max(left_s, 0.01), LOOK_S))

    async def current(self) -> Row:
        """The open round, after closing the one before when that is due. Raises DatabaseUnavailable."""
        current = self._current
        if current is not None and self._clock.now() < current.end_time:
            return current
        async with self._turn:
            if self._current is None or self._clock.now() >= self._current.end_time:
                self._current = await self._database.write(self._turn_over, effect=Effect.RANKED)
            return self._current

    def _turn_over(self, connection: Connection) -> Row:
        now = self._clock.now()
        # Nothing here waits for the chain: a round is closed when due whether or not the chain answers.
        height = self._chain.last_height or None
        last = store_rounds.find_open_round(connection)
        if last is None:
            self._open(connection, number=1, start_time=now, height=height, baseline=None)
        elif now >= last.end_time:
            self._close(connection, last, now, height)
        current = store_rounds.find_open_round(connection)
        if current is None:
            raise DatabaseUnavailable("no round is open: try again")
        return current

    def _close(self, connection: Connection, last: Row, now: datetime, height: BlockHeight | None) -> None:
        places = self._standing.compute(connection).places
        winner = places[0].entry if places else None
        is_ours = store_rounds.close_round(
            connection,
            last.id,
            {
                "end_block": height,
                "winner_hotkey": winner.hotkey if winner else None,
                "winner_submission_id": winner.submission_id if winner else None,
            },
        )
        if not is_ours:
            return
        store_rounds.insert_places(connection, last.round_number, places)
        # Rounds follow each other without a gap; those that passed while nobody ran never were.
        skipped = (now - last.end_time) // timedelta(seconds=self._round_s)
        self._open(
            connection,
            number=last.round_number + 1,
            start_time=last.end_time + skipped * timedelta(seconds=self._round_s),
            height=height,
            baseline=winner.submission_id if winner else last.baseline_submission_id,
        )
        _log.info("round closed", round_number=last.round_number, winner=winner.hotkey if winner else None)

    def _open(
        self,
        connection: Connection,
        *,
        number: int,
        start_time: datetime,
        height: BlockHeight | None,
        baseline: int | None,
    ) -> None:
        store_rounds.insert_round(
            connection,
            {
                "round_number": number,
                "start_time": start_time,
                "end_time": start_time + timedelta(seconds=self._round_s),
                "start_block": height,
                "baseline_submission_id": baseline,
            },
        )
