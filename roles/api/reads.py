"""The endpoints that anybody may read."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncConnection

from node.http_server import ApiProblem, FieldsInvalid
from protocol.messages import (
    ApiInfo,
    CurrentRound,
    Health,
    Leaderboard,
    PendingReveals,
    SubmissionDetail,
    SubmissionStats,
    SubmissionStatsAnswer,
    SubmissionSummary,
)
from protocol.rules import MAX_TARGET_SEQUENCE_LENGTH, RULES_VERSION
from roles.api import store_evaluations, store_submissions, views
from roles.api.answers import list_answer, model_answer
from roles.api.commits import MAX_OPEN_COMMITMENTS
from roles.api.context import Api
from roles.api.evaluations import path_id
from roles.api.standing import Standing
from roles.api.tables import Row

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 500
TOP_PERFORMERS: Final = 10


class ReadHandlers:
    """Handlers that only read; they answer while the chain is away, with the last height known."""

    def __init__(self, api: Api) -> None:
        self._api = api

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
        return model_answer(await self.pending())

    async def pending(self) -> PendingReveals:
        """What /pending_reveals answers."""
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
        current = await self._api.rounds.current()
        count = await self._api.database.read(
            lambda connection: store_submissions.count_revealed(connection, round_number=current.round_number)
        )
        left_s = (current.end_time - self._api.clock.now()).total_seconds()
        return views.current_round(current, seconds_left=left_s, submissions=count)

    async def leaderboard(self, _request: web.Request) -> web.Response:
        """The ranking over all verdicts."""
        return model_answer(await self.board())

    async def board(self) -> Leaderboard:
        """What /leaderboard answers."""
        standing = await self._api.standing.get()
        current = await self._api.rounds.current()
        return Leaderboard(
            rules_version=RULES_VERSION,
            current_block=await self._api.chain.height_or_last(),
            round_number=current.round_number,
            rows=[views.leaderboard_row(place) for place in standing.places],
        )

    async def submission_stats(self, request: web.Request) -> web.Response:
        """The newest revealed submissions, the fastest, and figures over what was measured."""
        limit = query_limit(request)
        return model_answer(await self.stats(limit))

    async def stats(self, limit: int) -> SubmissionStatsAnswer:
        """What /get_submission_stats answers."""
        standing = await self._api.standing.get()
        top_ids = [place.entry.submission_id for place in standing.places[:TOP_PERFORMERS]]

        async def work(connection: AsyncConnection) -> tuple[int, Sequence[Row], Sequence[Row], set[int]]:
            recent = await store_submissions.list_recent(connection, limit=limit, revealed=True)
            top = await store_submissions.list_by_id(connection, top_ids) if top_ids else []
            leased = await store_evaluations.list_leased(
                connection, [row.id for row in recent if row.judged_at is None], self._api.clock.now()
            )
            return await store_submissions.count_revealed(connection), recent, top, leased

        total, recent, top, leased = await self._api.database.read(work)
        by_id = {row.id: row for row in top}

        def summary(row: Row) -> SubmissionSummary:
            return views.submission_summary(row, standing, is_leased=row.id in leased)

        return SubmissionStatsAnswer(
            total_submissions=total,
            recent_submissions=[summary(row) for row in recent],
            stats=_figures(standing, total),
            top_performers=[summary(by_id[number]) for number in top_ids if number in by_id],
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
        """The newest submissions, of one hotkey or of all, also unrevealed ones."""
        hotkey = request.query.get("hotkey")
        limit = query_limit(request)
        return list_answer(
            await self._details(
                lambda connection: store_submissions.list_recent(connection, limit=limit, miner_hotkey=hotkey)
            )
        )

    async def _details(
        self, find: Callable[[AsyncConnection], Awaitable[Sequence[Row]]]
    ) -> list[SubmissionDetail]:
        standing = await self._api.standing.get()
        height = await self._api.chain.height_or_last()

        async def work(connection: AsyncConnection) -> tuple[Sequence[Row], Sequence[Row], set[int]]:
            # One snapshot: a verdict that arrives in between must not stand beside a row that knows of none.
            rows = await find(connection)
            numbers = [row.id for row in rows]
            verdicts = await store_evaluations.list_verdicts(connection, numbers)
            return (
                rows,
                verdicts,
                await store_evaluations.list_leased(connection, numbers, self._api.clock.now()),
            )

        rows, verdicts, leased = await self._api.database.read(work)
        return [
            views.submission_detail(
                row,
                [verdict for verdict in verdicts if verdict.submission_id == row.id],
                standing,
                is_leased=row.id in leased,
                height=height,
            )
            for row in rows
        ]


def query_limit(request: web.Request) -> int:
    """The parameter `limit`; raises FieldsInvalid (422)."""
    text = request.query.get("limit", str(DEFAULT_LIMIT))
    # isdecimal alone would let other scripts' digits through, and int() takes signs and blanks.
    if text.isascii() and text.isdecimal() and len(text) <= 6 and 1 <= int(text) <= MAX_LIMIT:
        return int(text)
    raise FieldsInvalid(
        [{"field": "limit", "message": f"must be a whole number from 1 to {MAX_LIMIT}", "value": text[:100]}]
    )


def _figures(standing: Standing, total: int) -> SubmissionStats:
    measured = [
        pooled.tokens_per_sec for pooled in standing.pooled.values() if pooled.tokens_per_sec is not None
    ]
    return SubmissionStats(
        avg_tokens_per_sec=sum(measured) / len(measured) if measured else None,
        max_tokens_per_sec=max(measured, default=None),
        min_tokens_per_sec=min(measured, default=None),
        total_submissions=total,
    )
