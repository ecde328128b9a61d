"""Re-runs: what validators found when they ran two submissions in turn."""

from aiohttp import web
from sqlalchemy import Connection

from node.chain.interface import Neuron
from node.http_server import ApiProblem, FieldsInvalid, json_body
from protocol.leads import judge_lead
from protocol.messages import Comparison, ComparisonAnswer
from protocol.signing import comparison_text, verify_text
from protocol.verdicts import LeadOutcome
from roles.api import store_comparisons as store
from roles.api.answers import model_answer
from roles.api.authentication import check_same_hotkey
from roles.api.context import Api
from roles.api.database import Effect
from roles.api.fields import field_problem, figures_problems
from roles.api.store_evaluations import find_verdict
from roles.api.store_submissions import find_submission
from roles.api.tables import Row


class ComparisonHandler:
    """Handler that records re-runs."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def record_comparison(self, request: web.Request) -> web.Response:
        """Store a re-run; the same one again gives the same answer."""
        validator = await self._api.authentication.validator(request)
        message = await json_body(request, Comparison)
        check_same_hotkey("validator_hotkey", message.validator_hotkey, validator.hotkey)
        _check_fields(message)
        verify_text(message.validator_hotkey, comparison_text(message), message.signature)
        await self._api.database.write(
            lambda connection: self._record(connection, validator, message), effect=Effect.RANKED
        )
        return model_answer(
            ComparisonAnswer(
                later_submission_id=message.later_submission_id,
                earlier_submission_id=message.earlier_submission_id,
                outcome=message.outcome,
            )
        )

    def _record(self, connection: Connection, validator: Neuron, message: Comparison) -> None:
        later = _judged(connection, validator, message.later_submission_id)
        earlier = _judged(connection, validator, message.earlier_submission_id)
        if (later.code_fixed_at, later.id) <= (earlier.code_fixed_at, earlier.id):
            raise ApiProblem(409, f"submission {later.id} is not later than submission {earlier.id}")
        known = store.find_comparison(connection, later.id, earlier.id, validator.hotkey)
        if known is None:
            values = {**message.model_dump(), "outcome": message.outcome.value}
            store.insert_comparison(connection, {**values, "created_at": self._api.clock.now()})
        elif known.outcome != message.outcome or known.evidence != message.evidence:
            raise ApiProblem(
                409,
                f"a re-run of {later.id} and {earlier.id} with outcome {known.outcome!r} is recorded already",
            )


def _judged(connection: Connection, validator: Neuron, submission_id: int) -> Row:
    row = find_submission(connection, submission_id)
    if row is None:
        raise ApiProblem(404, f"there is no submission {submission_id}")
    verdict = find_verdict(connection, submission_id, validator.hotkey)
    if verdict is None or not verdict.is_final:
        raise ApiProblem(409, f"submission {submission_id} has no final verdict of hotkey {validator.hotkey}")
    return row


def _check_fields(message: Comparison) -> None:
    problems = figures_problems(message)
    outcome, ratio = message.outcome, message.ratio
    if outcome is LeadOutcome.INFRASTRUCTURE:
        problems.append(field_problem("outcome", "settles nothing: run both again", outcome.value))
    if outcome in (LeadOutcome.CONFIRMED, LeadOutcome.NOT_CONFIRMED) and (
        ratio is None or judge_lead(ratio) is not outcome
    ):
        problems.append(field_problem("ratio", f"does not make {outcome.value}", ratio))
    if problems:
        raise FieldsInvalid(problems)
