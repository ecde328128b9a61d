"""The evaluation queue: validators lease submissions, keep the lease alive and hand in signed verdicts.

Validators judge independently: a lease is one validator's on one submission and keeps no other validator
from the same submission. One that is not renewed returns the submission to its validator's queue.
"""

import secrets
from collections.abc import Callable, Collection
from datetime import timedelta
from typing import Final

from aiohttp import web
from sqlalchemy import Connection

from node.chain.interface import Neuron
from node.http_server import ApiProblem, FieldsInvalid, json_body
from protocol.messages import Heartbeat, HeartbeatAnswer, LeaseAnswer, Verdict, VerdictAnswer
from protocol.signing import verdict_text, verify_text
from protocol.verdicts import Status
from roles.api import store_evaluations as store
from roles.api.answers import model_answer
from roles.api.authentication import check_same_hotkey
from roles.api.context import Api
from roles.api.database import Effect
from roles.api.fields import field_problem, figures_problems
from roles.api.settling import pool, settle
from roles.api.store_submissions import count_queued, find_submission, mark_judged
from roles.api.tables import Row

LEASE_ATTEMPTS: Final = 3
"""Another worker of the same validator may take what was just found."""
MAX_INFRASTRUCTURE_RETRIES: Final = 2
"""A validator that fails for reasons of its own gets the submission this many times again."""
RETRY_GROWTH: Final = 12
"""Each time it waits so much longer: what has not passed in minutes may take hours."""


class EvaluationHandlers:
    """Handlers of the endpoints through which validators judge."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._lease_time = timedelta(seconds=api.settings.api.lease_s)
        first = timedelta(seconds=api.settings.api.infrastructure_retry_s)
        self._retry_delays = [first * RETRY_GROWTH**number for number in range(MAX_INFRASTRUCTURE_RETRIES)]

    async def lease(self, request: web.Request) -> web.Response:
        """Give the validator the submission that it should judge next: 200, or 204 when there is none."""
        validator = await self._api.authentication.validator(request)
        registered = (await self._api.chain.metagraph()).neurons.keys()
        found: tuple[Row, str] | None = None
        for _ in range(LEASE_ATTEMPTS):
            # Looking through the queue holds up nobody's write; the one found is looked at again to take it.
            next_row = await self._api.database.read(self._finder(validator, registered))
            if next_row is None:
                break
            found = await self._api.database.write(
                self._taker(validator, self._finder(validator, registered, next_row.id)),
                turns=(validator.hotkey,),
                effect=Effect.SHOWN,
            )
            if found is not None:
                break
        self._api.metrics.evaluation_queue_depth.set(await self._api.database.read(count_queued))
        if found is None:
            return web.Response(status=204)
        row, lease_id = found
        answer = LeaseAnswer(
            lease_id=lease_id,
            submission_id=row.id,
            miner_hotkey=row.miner_hotkey,
            fork_url=row.fork_url,
            commit_hash=row.commit_hash,
            target_sequence_length=row.target_sequence_length,
            claimed_tokens_per_sec=row.claimed_tokens_per_sec,
            code_fixed_at=row.code_fixed_at,
            round_number=row.round_number,
            expires_at=self._api.clock.now() + self._lease_time,
            heartbeat_s=self._api.settings.api.heartbeat_s,
        )
        return model_answer(answer)

    def _finder(
        self, validator: Neuron, registered: Collection[str], submission_id: int | None = None
    ) -> Callable[[Connection], Row | None]:
        return lambda connection: store.find_next(
            connection,
            validator_hotkey=validator.hotkey,
            miner_hotkeys=registered,
            now=self._api.clock.now(),
            retry_delays=self._retry_delays,
            submission_id=submission_id,
        )

    def _taker(
        self, validator: Neuron, find: Callable[[Connection], Row | None]
    ) -> Callable[[Connection], tuple[Row, str] | None]:
        def take(connection: Connection) -> tuple[Row, str] | None:
            row = find(connection)
            if row is None:
                return None
            now = self._api.clock.now()
            lease_id = secrets.token_hex(16)
            store.insert_lease(
                connection,
                {
                    "lease_id": lease_id,
                    "submission_id": row.id,
                    "validator_hotkey": validator.hotkey,
                    "miner_coldkey": row.miner_coldkey,
                    "leased_at": now,
                    "expires_at": now + self._lease_time,
                },
            )
            return row, lease_id

        return take

    async def heartbeat(self, request: web.Request) -> web.Response:
        """Extend a lease; one that expired but was not given again lives on."""
        validator = await self._api.authentication.validator(request)
        submission_id = path_id(request)
        message = await json_body(request, Heartbeat)
        expires_at = self._api.clock.now() + self._lease_time

        def work(connection: Connection) -> None:
            self._held_lease(connection, validator, submission_id, message.lease_id)
            store.update_lease(connection, message.lease_id, {"expires_at": expires_at})

        await self._api.database.write(work, turns=(validator.hotkey,))
        return model_answer(HeartbeatAnswer(expires_at=expires_at))

    async def verdict(self, request: web.Request) -> web.Response:
        """Store a validator's verdict and end its lease; the same one again gives the same answer."""
        validator = await self._api.authentication.validator(request)
        submission_id = path_id(request)
        message = await json_body(request, Verdict)
        _check_verdict(message, validator, submission_id)
        verify_text(message.validator_hotkey, verdict_text(message), message.signature)
        is_new = await self._api.database.write(
            lambda connection: self._record_verdict(connection, validator, message),
            turns=(validator.hotkey,),
            effect=Effect.RANKED,
        )
        if is_new:
            self._api.metrics.evaluations.labels(message.status.value, message.fault.value).inc()
        return model_answer(VerdictAnswer(submission_id=submission_id, status=message.status))

    def _record_verdict(self, connection: Connection, validator: Neuron, message: Verdict) -> bool:
        earlier = store.find_verdict(connection, message.submission_id, validator.hotkey)
        if earlier is not None and earlier.lease_id == message.lease_id:
            if earlier.status == message.status and earlier.evidence == message.evidence:
                return False
            raise ApiProblem(
                409,
                f"submission {message.submission_id} has a verdict {earlier.status!r} under this lease_id",
            )
        self._held_lease(connection, validator, message.submission_id, message.lease_id)
        now = self._api.clock.now()
        attempt = 1 if earlier is None else earlier.attempt + 1
        is_final = message.status is not Status.INFRASTRUCTURE or attempt > MAX_INFRASTRUCTURE_RETRIES
        values = message.model_dump(exclude={"status", "fault"})
        store.put_verdict(
            connection,
            {
                **values,
                "status": message.status.value,
                "fault": message.fault.value,
                "attempt": attempt,
                "is_final": is_final,
                "created_at": now,
            },
            replaces=earlier,
        )
        store.update_lease(connection, message.lease_id, {"state": store.DONE})
        if is_final:
            mark_judged(connection, message.submission_id, now)
            pool(connection, message.submission_id, self._api.stakes())
            settle(connection, self._api.stakes(), now)
        return True

    def _held_lease(
        self, connection: Connection, validator: Neuron, submission_id: int, lease_id: str
    ) -> Row:
        if find_submission(connection, submission_id) is None:
            raise ApiProblem(404, f"there is no submission {submission_id}")
        lease = store.find_lease(connection, lease_id)
        if lease is None or lease.submission_id != submission_id:
            raise ApiProblem(404, f"lease_id {lease_id} is no lease of submission {submission_id}")
        if lease.validator_hotkey != validator.hotkey:
            raise ApiProblem(403, f"lease_id {lease_id} does not belong to hotkey {validator.hotkey}")
        if lease.state == store.SUPERSEDED:
            raise ApiProblem(409, f"lease_id {lease_id} expired and the submission was leased again since")
        if lease.state == store.DONE:
            raise ApiProblem(409, f"lease_id {lease_id} has ended with a verdict")
        return lease


def path_id(request: web.Request) -> int:
    """The submission's number from the path; raises ApiProblem 404 for one that cannot exist."""
    text = request.match_info["submission_id"]
    if len(text) > 18:
        raise ApiProblem(404, f"there is no submission {text[:18]}...")
    return int(text)


def _check_verdict(message: Verdict, validator: Neuron, submission_id: int) -> None:
    check_same_hotkey("validator_hotkey", message.validator_hotkey, validator.hotkey)
    problems = figures_problems(message)
    if message.submission_id != submission_id:
        problems.append(
            field_problem("submission_id", f"must be {submission_id} as in the path", message.submission_id)
        )
    measured = message.measured_tokens_per_sec
    if message.status is Status.PASSED and (measured is None or measured <= 0):
        problems.append(
            field_problem("measured_tokens_per_sec", "must be above 0 when the status is passed", measured)
        )
    if problems:
        raise FieldsInvalid(problems)
