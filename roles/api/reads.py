"""The endpoints that anybody may read."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, TypeVar

from aiohttp import web
from sqlalchemy import Connection

from node.http_server import ApiProblem
from protocol.messages import (
    ApiInfo,
    CurrentRound,
    Health,
    Leaderboard,
    PendingReveals,
    SubmissionDetail,
    SubmissionStats,
    SubmissionStatsAnswer,
)
from protocol.rules import MAX_TARGET_SEQUENCE_LENGTH, RULES_VERSION
from roles.api import store_comparisons, store_evaluations, store_submissions, views
from roles.api.answers import LastAnswer, list_answer, model_answer
from roles.api.commits import MAX_OPEN_COMMITMENTS
from roles.api.context import Api
from roles.api.database import Effect
from roles.api.evaluations import path_id
from roles.api.queries import whole_number
from roles.api.remembered import Remembered
from roles.api.standing import Standing
from roles.api.tables import Row

T = TypeVar("T")

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 500
MAX_LIST_BYTES: Final = 4 * 2**20
"""Half of what this product's own client reads of an answer."""
TOP_PERFORMERS: Final = 10
REMEMBERED_LIMITS: Final = 4
"""So many different values of `limit` have their answers remembered."""


class ReadHandlers:
    """Handlers that only read; they answer while the chain is away, with the last height known."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._round = self._remembered(self._find_round)
        self._pending = self._remembered(self._find_pending)
        self._pending_answer = LastAnswer()
        self._board: tuple[tuple[Standing, int, int], Leaderboard] | None = None
        self._board_answer = LastAnswer()
        self._stats: dict[int, tuple[Remembered[SubmissionStatsAnswer], LastAnswer]] = {}

    def _remembered(self, find: Callable[[], Awaitable[T]]) -> Remembered[T]:
        return Remembered(find, partial(self._api.database.revision, Effect.SHOWN), self._api.clock)

    async def health(self, _request: web.Request) -> web.Response:
        """The process answers; whether it can do its work is /readyz's to say."""
        return model_answer(Health(status="ok"))

    async def info(self, _request: web.Request) -> web.Response:
        """To whom requests are bound, and the limits in force."""
        settings = self._api.settings
        return model_answer(
            ApiInfo(
                hotkey=self._api.signer.ss58_address,
                network=settings.chain.network,
                netuid=settings.chain.netuid,
                rules_version=RULES_VERSION,
                blocks_until_reveal=settings.api.blocks_until_reveal,
                reveal_window_blocks=settings.api.reveal_window_blocks,
                max_target_sequence_length=MAX_TARGET_SEQUENCE_LENGTH,
                allowed_git_hosts=list(settings.api.allowed_git_hosts),
                limits={
                    "max_body_bytes": settings.api.max_body_bytes,
                    "writes_per_minute_per_hotkey": settings.api.writes_per_minute_per_hotkey,
                    "writes_per_minute_per_ip": settings.api.writes_per_minute_per_ip,
                    "open_commitments_per_hotkey": MAX_OPEN_COMMITMENTS,
                    "queued_submissions_per_hotkey": 1,
                },
            )
        )

    async def pending_reveals(self, _request: web.Request) -> web.Response:
        """Commitments that wait for their reveal, the next due first."""
        return self._pending_answer.show(await self.pending())

    async def pending(self) -> PendingReveals:
        """What /pending_reveals answers."""
        height = await self._api.chain.height_or_last()
        known = await self._pending.get()
        if known.current_block != height:
            known = await self._pending.renew()
        return known

    async def _find_pending(self) -> PendingReveals:
        height = await self._api.chain.height_or_last()
        rows = await self._api.database.read(
            lambda connection: store_submissions.list_pending(connection, height)
        )
        return PendingReveals(
            current_block=height, pending_reveals=[views.pending_reveal(row, height) for row in rows]
        )

    async def current_round(self, _request: web.Request) -> web.Response:
        """The open round."""
        return model_answer(await self.round())

    async def round(self) -> CurrentRound:
        """What /get_current_round answers."""
        # First: a round that is due is closed here, and what is remembered of it is out of date.
        await self._api.rounds.current()
        current, count = await self._round.get()
        left_s = (current.end_time - self._api.clock.now()).total_seconds()
        return views.current_round(current, seconds_left=left_s, submissions=count)

    async def _find_round(self) -> tuple[Row, int]:
        current = await self._api.rounds.current()
        return current, await self._api.database.read(
            lambda connection: store_submissions.count_revealed(connection, round_number=current.round_number)
        )

    async def leaderboard(self, _request: web.Request) -> web.Response:
        """The ranking over all verdicts."""
        return self._board_answer.show(await self.board())

    async def board(self) -> Leaderboard:
        """What /leaderboard answers."""
        basis = (
            await self._api.standing.get(),
            await self._api.chain.height_or_last(),
            int((await self._api.rounds.current()).round_number),
        )
        if self._board is None or self._board[0] != basis:
            self._board = basis, _leaderboard(*basis)
        return self._board[1]

    async def submission_stats(self, request: web.Request) -> web.Response:
        """The newest revealed submissions, the fastest, and figures over what was measured."""
        limit = whole_number(request, "limit", default=DEFAULT_LIMIT, highest=MAX_LIMIT)
        known, answer = self._stats_of(limit)
        return answer.show(await known.get())

    async def stats(self, limit: int) -> SubmissionStatsAnswer:
        """What /get_submission_stats answers."""
        known, _ = self._stats_of(limit)
        return await known.get()

    def _stats_of(self, limit: int) -> tuple[Remembered[SubmissionStatsAnswer], LastAnswer]:
        if limit not in self._stats:
            if len(self._stats) >= REMEMBERED_LIMITS:
                self._stats.pop(next(iter(self._stats)))
            self._stats[limit] = self._remembered(partial(self._find_stats, limit)), LastAnswer()
        return self._stats[limit]

    async def _find_stats(self, limit: int) -> SubmissionStatsAnswer:
        standing = await self._api.standing.get()
        top_ids = [place.entry.submission_id for place in standing.places[:TOP_PERFORMERS]]

        def work(connection: Connection) -> tuple[int, Sequence[Row], Sequence[Row], set[int]]:
            recent = store_submissions.list_recent(connection, limit=limit, revealed=True)
            top = store_submissions.list_by_id(connection, top_ids) if top_ids else []
            leased = store_evaluations.list_leased(
                connection, [row.id for row in recent if row.judged_at is None], self._api.clock.now()
            )
            return store_submissions.count_revealed(connection), recent, top, leased

        total, recent, top, leased = await self._api.database.read(work)
        by_id = {row.id: views.submission_summary(row, is_leased=False) for row in top}
        return SubmissionStatsAnswer(
            total_submissions=total,
            recent_submissions=[views.submission_summary(row, is_leased=row.id in leased) for row in recent],
            stats=SubmissionStats(
                avg_tokens_per_sec=standing.figures.average,
                max_tokens_per_sec=standing.figures.highest,
                min_tokens_per_sec=standing.figures.lowest,
                total_submissions=total,
            ),
            top_performers=[by_id[number] for number in top_ids if number in by_id],
        )

    async def submission(self, request: web.Request) -> web.Response:
        """One submission with its verdicts."""
        submission_id = path_id(request)
        found = await self._details(
            lambda connection: store_submissions.list_by_id(connection, [submission_id])
        )
        if not found:
            raise ApiProblem(404, f"there is no submission {submission_id}")
        return model_answer(found[0])

    async def submissions(self, request: web.Request) -> web.Response:
        """The newest submissions, of one hotkey or of all, also unrevealed ones: as many as fit.

        What many validators say of one is too much to be repeated for all of them: the evidence is left out.
        """
        hotkey = request.query.get("hotkey")
        limit = whole_number(request, "limit", default=DEFAULT_LIMIT, highest=MAX_LIMIT)
        if hotkey is not None and not (hotkey.isascii() and hotkey.isalnum()):
            # No hotkey looks like that, and not every database takes every text.
            return list_answer([])
        return list_answer(
            await self._details(
                lambda connection: store_submissions.list_recent(
                    connection, limit=limit, miner_hotkey=hotkey
                ),
                is_short=True,
            ),
            max_bytes=MAX_LIST_BYTES,
        )

    async def _details(
        self, find: Callable[[Connection], Sequence[Row]], *, is_short: bool = False
    ) -> list[SubmissionDetail]:
        standing = await self._api.standing.get()
        height = await self._api.chain.height_or_last()

        def work(connection: Connection) -> tuple[Sequence[Row], Sequence[Row], Sequence[Row], set[int]]:
            # One snapshot: a verdict that arrives in between must not stand beside a row that knows of none.
            rows = find(connection)
            numbers = [row.id for row in rows]
            return (
                rows,
                store_evaluations.list_verdicts(connection, numbers, is_short=is_short),
                store_comparisons.list_comparisons(connection, numbers, is_short=is_short),
                store_evaluations.list_leased(connection, numbers, self._api.clock.now()),
            )

        rows, verdicts, comparisons, leased = await self._api.database.read(work)
        return [
            views.submission_detail(
                row,
                verdicts,
                comparisons,
                standing,
                is_leased=row.id in leased,
                height=height,
            )
            for row in rows
        ]


def _leaderboard(standing: Standing, height: int, round_number: int) -> Leaderboard:
    return Leaderboard(
        rules_version=RULES_VERSION,
        current_block=height,
        round_number=round_number,
        rows=[views.leaderboard_row(place) for place in standing.places],
    )
