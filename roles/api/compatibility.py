"""Endpoints that the existing network's clients call.

The reading ones answer from what is recorded here. The writing ones need an authenticated validator and
change nothing by themselves: a verdict is what marks a submission as validated or failed, strikes are counted
from verdicts and never from addresses that somebody names, and rounds open and close by time.
"""

from datetime import timedelta
from typing import Final

from aiohttp import web
from sqlalchemy import Connection, func, select

from node.http_server import ApiProblem, json_body
from protocol.compatibility import (
    Acknowledged,
    CreateRound,
    MarkValidated,
    RecordFailure,
    RegisterMiner,
    RegisterMinerAnswer,
    SubmissionRate,
    VerificationStats,
    WeightEntry,
    Weights,
)
from protocol.types import Hotkey
from protocol.verdicts import Fault, LogitOutcome
from roles.api import store_evaluations as store
from roles.api.answers import model_answer
from roles.api.context import Api
from roles.api.queries import whole_number
from roles.api.store_submissions import find_submission
from roles.api.tables import submissions

MAX_WINDOW_MINUTES: Final = 1440


class CompatibilityHandlers:
    """Handlers of those endpoints."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def get_weights(self, _request: web.Request) -> web.Response:
        """The shares of the first four, by UID."""
        standing = await self._api.standing.get()
        current = await self._api.rounds.current()
        metagraph = await self._api.chain.metagraph()
        entries = [
            WeightEntry(uid=neuron.uid, hotkey=place.entry.hotkey, weight=place.share)
            for place in standing.places
            if place.share > 0 and (neuron := metagraph.neurons.get(place.entry.hotkey)) is not None
        ]
        height = await self._api.chain.height_or_last()
        return model_answer(Weights(epoch=height, round_number=current.round_number, weights=entries))

    async def submission_rate(self, request: web.Request) -> web.Response:
        """How many submissions a minute have come in lately."""
        minutes = whole_number(request, "window_minutes", default=10, highest=MAX_WINDOW_MINUTES)
        since = self._api.clock.now() - timedelta(minutes=minutes)
        query = select(func.count()).select_from(submissions).where(submissions.c.created_at >= since)
        count = await self._api.database.read(lambda connection: int(connection.execute(query).scalar_one()))
        return model_answer(
            SubmissionRate(
                submissions_per_minute=round(count / minutes, 2),
                recent_submissions=count,
                window_minutes=minutes,
            )
        )

    async def verification_stats(self, _request: web.Request) -> web.Response:
        """How many hotkeys have passed logit verification."""
        standing = await self._api.standing.get()
        outcomes = [logits.outcome for logits in standing.logits.values()]
        passed, failed = outcomes.count(LogitOutcome.PASSED), outcomes.count(LogitOutcome.FAILED)
        return model_answer(
            VerificationStats(
                total_submissions=len(outcomes),
                verified_passed=passed,
                verified_failed=failed,
                pending_verification=outcomes.count(LogitOutcome.PENDING),
                pass_rate=passed / (passed + failed) if passed + failed else None,
            )
        )

    async def register_miner(self, request: web.Request) -> web.Response:
        """Whether a hotkey is registered on the chain, which is where miners register."""
        message = await json_body(request, RegisterMiner)
        neuron = await self._api.chain.neuron(message.hotkey)
        return model_answer(
            RegisterMinerAnswer(
                status="already_registered",
                hotkey=Hotkey(neuron.hotkey),
                uid=neuron.uid,
                model_name=message.model_name,
                league=message.league,
            )
        )

    async def mark_validated(self, request: web.Request) -> web.Response:
        """Confirm that the validator's verdict on a submission is recorded."""
        validator = await self._api.authentication.validator(request)
        message = await json_body(request, MarkValidated)
        await self._api.database.read(
            lambda connection: _check_verdict(connection, message.submission_id, validator.hotkey, None)
        )
        return model_answer(Acknowledged(status="ok", submission_id=message.submission_id))

    async def record_failure(self, request: web.Request) -> web.Response:
        """Confirm that the validator's verdict against a submission is recorded."""
        validator = await self._api.authentication.validator(request)
        message = await json_body(request, RecordFailure)
        await self._api.database.read(
            lambda connection: _check_verdict(
                connection, message.submission_id, validator.hotkey, Fault.MINER
            )
        )
        return model_answer(Acknowledged(status="ok", submission_id=message.submission_id))

    async def create_round(self, request: web.Request) -> web.Response:
        """Refuse: exactly one round is open at any time."""
        await self._api.authentication.validator(request)
        await json_body(request, CreateRound)
        current = await self._api.rounds.current()
        raise ApiProblem(
            409,
            f"round {current.round_number} is open until {current.end_time.isoformat()}: "
            "the next one opens by itself",
        )

    async def finalize_round(self, request: web.Request) -> web.Response:
        """Close a round that is due, which happens without being asked; refuse before."""
        await self._api.authentication.validator(request)
        round_id = request.match_info["round_id"]
        current = await self._api.rounds.current()
        if round_id == str(current.id):
            raise ApiProblem(
                409, f"round_id {round_id} is round {current.round_number}: it closes at {current.end_time}"
            )
        raise ApiProblem(404, f"there is no open round with round_id {round_id[:20]}")


def _check_verdict(
    connection: Connection, submission_id: int, validator_hotkey: str, fault: Fault | None
) -> None:
    if find_submission(connection, submission_id) is None:
        raise ApiProblem(404, f"there is no submission with submission_id {submission_id}")
    verdict = store.find_verdict(connection, submission_id, validator_hotkey)
    if verdict is None or (fault is not None and verdict.fault != fault.value):
        kind = "verdict" if fault is None else f"verdict with fault {fault.value!r}"
        raise ApiProblem(
            409,
            f"submission_id {submission_id} has no {kind} of {validator_hotkey}: "
            f"hand one in at /evaluations/{submission_id}/verdict",
        )
