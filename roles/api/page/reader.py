"""Reads what the page shows: each page in one snapshot of the database, code hidden until a verdict."""

from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from typing import Final

from sqlalchemy import Connection

from protocol.errors import ChainUnavailable
from protocol.leagues import weighted_score
from protocol.types import BlockHeight, Hotkey
from protocol.verdicts import Status
from roles.api import store_comparisons, store_evaluations, store_submissions, views
from roles.api.context import Api
from roles.api.page import queries
from roles.api.page.path import Outcome, path_of
from roles.api.page.ranking import Ranking
from roles.api.page.snapshot import Accuracy, Front, MinerPage, Shown, SubmissionPage, Subnet
from roles.api.readiness import CHAIN_SILENT_AFTER_S
from roles.api.standing import Standing
from roles.api.tables import Row

SHOWN_PLACES: Final = 256
"""More hotkeys than a subnet has slots are never ranked."""
SHOWN_RECENT: Final = 20
SHOWN_PENDING: Final = 20
SHOWN_HISTORY: Final = 100
SHOWN_CHECKS: Final = 5
SHOWN_ROUNDS: Final = 20


class PageReader:
    """Puts the pages together from the same parts as the reading endpoints."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def front(self) -> Front:
        """The front page. Raises DatabaseUnavailable."""
        api = self._api
        subnet, standing, ranking = await self._moment()
        current = await api.rounds.current()
        places = ranking.places[:SHOWN_PLACES]

        def work(connection: Connection) -> Front:
            pending = store_submissions.list_pending(connection, subnet.height)
            recent = store_submissions.list_recent(connection, limit=SHOWN_RECENT)
            count = store_submissions.count_revealed(connection, round_number=current.round_number)
            left_s = (current.end_time - api.clock.now()).total_seconds()
            return Front(
                subnet=subnet,
                round=views.current_round(current, seconds_left=left_s, submissions=count),
                places=places,
                accuracy=_accuracy(connection, [int(place.entry.submission_id) for place in places]),
                # Without their verdicts: the front page needs only what they amount to.
                recent=self._shown(connection, recent, [], [], standing, ranking),
                pending=[views.pending_reveal(row, subnet.height) for row in pending[:SHOWN_PENDING]],
                pending_total=len(pending),
                queued=store_submissions.count_queued(connection),
                wait_blocks=api.settings.api.blocks_until_reveal,
            )

        return await api.database.read(work)

    async def miner(self, hotkey: str) -> MinerPage:
        """The page of a hotkey, known or not. Raises DatabaseUnavailable."""
        subnet, standing, ranking = await self._moment()
        current = await self._api.rounds.current()
        metagraph = self._api.chain.last_metagraph
        neuron = None if metagraph is None else metagraph.neurons.get(Hotkey(hotkey))

        def work(connection: Connection) -> MinerPage:
            rows = store_submissions.list_recent(connection, limit=SHOWN_HISTORY + 1, miner_hotkey=hotkey)
            shown = self._shown(connection, rows[:SHOWN_HISTORY], [], [], standing, ranking)
            return MinerPage(
                subnet=subnet,
                hotkey=hotkey,
                uid=None if neuron is None else neuron.uid,
                is_registered=ranking.is_registered(hotkey),
                place=ranking.place_of_miner(hotkey),
                reason=ranking.why_miner(hotkey, [(one.detail, one.outcome) for one in shown]),
                logits=standing.logit_outcome(hotkey),
                checks=queries.list_checks(connection, hotkey, SHOWN_CHECKS),
                submissions=shown,
                has_more=len(rows) > SHOWN_HISTORY,
                finishes=queries.list_finishes(connection, hotkey, current.round_number - SHOWN_ROUNDS),
            )

        return await self._api.database.read(work)

    async def submission(self, submission_id: int) -> SubmissionPage | None:
        """The page of a submission, None when there is none. Raises DatabaseUnavailable."""
        subnet, standing, ranking = await self._moment()

        def work(connection: Connection) -> SubmissionPage | None:
            row = store_submissions.find_submission(connection, submission_id)
            if row is None:
                return None
            verdicts = store_evaluations.list_verdicts(connection, [submission_id])
            reruns = store_comparisons.list_comparisons(connection, [submission_id])
            [shown] = self._shown(connection, [row], verdicts, reruns, standing, ranking)
            return SubmissionPage(subnet=subnet, shown=shown)

        return await self._api.database.read(work)

    async def _moment(self) -> tuple[Subnet, Standing, Ranking]:
        """Heights and the ranking, as every page needs them."""
        api = self._api
        chain = api.settings.chain
        height = await api.chain.height_or_last()
        subnet = Subnet(
            network=chain.network,
            netuid=chain.netuid,
            height=height,
            block_time_s=await _or_none(api.chain.block_time_s),
            trouble=api.chain.unreadiness(CHAIN_SILENT_AFTER_S),
        )
        standing = await api.standing.get()
        return subnet, standing, self._ranking(standing, height)

    def _ranking(self, standing: Standing, height: BlockHeight) -> Ranking:
        metagraph = self._api.chain.last_metagraph
        return Ranking(
            places=standing.places,
            open_leads=standing.ranking.open_leads,
            waiting=standing.ranking.waiting,
            logits={hotkey: known.outcome for hotkey, known in standing.logits.items()},
            registered=None if metagraph is None else metagraph.neurons.keys(),
            netuid=self._api.settings.chain.netuid,
            height=height,
        )

    def _shown(
        self,
        connection: Connection,
        rows: Sequence[Row],
        verdicts: Sequence[Row],
        comparisons: Sequence[Row],
        standing: Standing,
        ranking: Ranking,
    ) -> list[Shown]:
        numbers = [row.id for row in rows]
        leased = store_evaluations.list_leased(connection, numbers, self._api.clock.now())
        shown = []
        for row in rows:
            detail = views.submission_detail(
                row,
                verdicts,
                comparisons,
                standing,
                is_leased=row.id in leased,
                height=ranking.height,
            )
            outcome = _outcome(row)
            speed = None if outcome is None else outcome.tokens_per_sec
            shown.append(
                Shown(
                    detail=detail,
                    outcome=outcome,
                    score=None if speed is None else weighted_score(speed, row.target_sequence_length),
                    path=path_of(detail, outcome, ranking.height),
                    reason=ranking.why_submission(detail, outcome),
                )
            )
        return shown


def _outcome(row: Row) -> Outcome | None:
    if row.settled_at is None:
        return None
    return Outcome(Status(row.pooled_status), row.pooled_tokens_per_sec)


async def _or_none(ask: Callable[[], Awaitable[float]]) -> float | None:
    try:
        return await ask()
    except ChainUnavailable:
        return None


def _accuracy(connection: Connection, submission_ids: Sequence[int]) -> dict[int, Accuracy]:
    rows = queries.list_accuracy(connection, submission_ids)
    passed = sorted((row for row in rows if row.status == Status.PASSED), key=lambda row: row.submission_id)
    found = {}
    for number, group in groupby(passed, lambda row: row.submission_id):
        verdicts = list(group)
        cosines = [row.cosine_similarity for row in verdicts if row.cosine_similarity is not None]
        errors = [row.relative_error for row in verdicts if row.relative_error is not None]
        found[int(number)] = Accuracy(
            cosine_similarity=min(cosines, default=None),
            relative_error=max(errors, default=None),
            gpu=", ".join(sorted({row.gpu for row in verdicts})),
        )
    return found
