"""Logit checks: what validators found out about miners' inference servers."""

from datetime import timedelta
from typing import Final

from aiohttp import web
from sqlalchemy import Connection

from node.http_server import ApiProblem, FieldsInvalid, json_body
from protocol.errors import NotPermitted
from protocol.messages import LogitCheck, LogitCheckAnswer, LogitVerification
from protocol.signing import logit_check_text, verify_text
from roles.api import store_logits as store
from roles.api.answers import list_answer, model_answer
from roles.api.authentication import check_same_hotkey
from roles.api.context import Api
from roles.api.database import Effect
from roles.api.settling import settle

MAX_FUTURE: Final = timedelta(seconds=60)
"""How far a validator's clock may run ahead of ours."""
MAX_STEP: Final = 1_000_000


class VerificationHandlers:
    """Handlers that record logit checks and show where each hotkey stands."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def record(self, request: web.Request) -> web.Response:
        """Store a logit check; the same one again gives the same answer."""
        validator = await self._api.authentication.validator(request)
        message = await json_body(request, LogitCheck)
        check_same_hotkey("validator_hotkey", message.validator_hotkey, validator.hotkey)
        self._check_fields(message)
        verify_text(message.validator_hotkey, logit_check_text(message), message.signature)
        try:
            await self._api.chain.neuron(message.miner_hotkey)
        except NotPermitted as error:
            raise ApiProblem(404, f"miner_hotkey: {error}") from error
        await self._api.database.write(
            lambda connection: self._record(connection, message), effect=Effect.RANKED
        )
        return model_answer(LogitCheckAnswer(miner_hotkey=message.miner_hotkey, outcome=message.outcome))

    def _check_fields(self, message: LogitCheck) -> None:
        field, problem, value = "checked_at", None, message.checked_at.isoformat()
        if message.checked_at.tzinfo is None:
            problem = "must name its time zone: use UTC"
        elif message.checked_at > self._api.clock.now() + MAX_FUTURE:
            problem = "lies in the future: set the clock"
        elif message.step is not None and not 1 <= message.step <= MAX_STEP:
            field, problem, value = "step", f"must be from 1 to {MAX_STEP}", str(message.step)[:40]
        if problem is not None:
            raise FieldsInvalid([{"field": field, "message": problem, "value": value}])

    def _record(self, connection: Connection, message: LogitCheck) -> None:
        known = store.find_check(
            connection, message.miner_hotkey, message.validator_hotkey, message.checked_at
        )
        if known is None:
            values = message.model_dump(exclude={"outcome"})
            now = self._api.clock.now()
            store.insert_check(
                connection,
                {**values, "outcome": message.outcome.value, "created_at": now},
            )
            settle(connection, self._api.stakes(), now)
        elif known.outcome != message.outcome:
            raise ApiProblem(
                409,
                f"a check of {message.miner_hotkey} at {message.checked_at.isoformat()} with outcome "
                f"{known.outcome!r} is recorded already",
            )

    async def show(self, _request: web.Request) -> web.Response:
        """Where every lately checked hotkey stands."""
        standing = await self._api.standing.get()
        return list_answer(
            [
                LogitVerification(
                    miner_hotkey=hotkey,
                    outcome=logits.outcome,
                    checked_at=logits.checked_at,
                    validators=logits.validators,
                )
                for hotkey, logits in standing.logits.items()
            ]
        )
