"""Re-runs of two submissions: who may hand them in, and what they do to the standing."""

from typing import Any

import pytest

from protocol.messages import Comparison, SubmissionDetail
from protocol.signing import verify_message
from protocol.verdicts import LeadOutcome, LogitOutcome
from tests.roles.api.harness import Client, Code, Subnet, comparison_message


async def passed(api: Client, subnet: Subnet, name: str, speed: float) -> int:
    """A miner with a submission that passed; returns its number."""
    miner = getattr(subnet, name)
    submitted = await api.submit(miner, Code(name))
    lease = await api.lease(subnet.validator)
    assert lease is not None
    assert (await api.judge(subnet.validator, lease, measured_tokens_per_sec=speed)).status == 200
    await api.check_logits(subnet.validator, miner, LogitOutcome.PASSED)
    return submitted.submission_id


async def board(api: Client) -> list[int]:
    """Submissions by place."""
    return [row["submission_id"] for row in (await api.get("/leaderboard")).body["rows"]]


async def detail(api: Client, number: int) -> SubmissionDetail:
    """GET /submissions/{id}."""
    return SubmissionDetail.model_validate((await api.get(f"/submissions/{number}")).body)


async def test_a_lead_counts_once_a_rerun_has_confirmed_it(api: Client, subnet: Subnet) -> None:
    slow, fast = await passed(api, subnet, "miner", 1000.0), await passed(api, subnet, "rival", 2000.0)
    assert await board(api) == [slow, fast]
    page = (await api.get(f"/submissions/{fast}/page")).body
    assert f"confirms its lead over submission {slow}" in page
    answer = await api.compare(subnet.validator, fast, slow, later_tokens_per_sec=1990.0)
    assert answer.status == 200
    assert answer.body == {
        "later_submission_id": fast,
        "earlier_submission_id": slow,
        "outcome": "confirmed",
    }
    assert await board(api) == [fast, slow]
    for number in (slow, fast):
        [shown] = (await detail(api, number)).comparisons
        assert (shown.later_submission_id, shown.earlier_submission_id) == (fast, slow)
        signed = {name: getattr(shown, name) for name in Comparison.model_fields}
        assert verify_message(Comparison(**signed)) == subnet.validator.ss58_address
    page = (await api.get(f"/submissions/{slow}/page")).body
    assert "Re-runs in turn" in page
    assert f'href="/submissions/{fast}/page"' in page


async def test_a_lead_that_is_not_confirmed_stays_a_tie(api: Client, subnet: Subnet) -> None:
    slow, fast = await passed(api, subnet, "miner", 1000.0), await passed(api, subnet, "rival", 2000.0)
    await api.compare(subnet.validator, fast, slow, LeadOutcome.NOT_CONFIRMED)
    assert await board(api) == [slow, fast]
    page = (await api.get(f"/submissions/{fast}/page")).body
    assert "a re-run confirmed no lead of more than 2 % over an earlier submission" in page


async def test_the_same_rerun_again_is_taken_and_another_is_not(api: Client, subnet: Subnet) -> None:
    slow, fast = await passed(api, subnet, "miner", 1000.0), await passed(api, subnet, "rival", 2000.0)
    for _ in range(2):
        assert (await api.compare(subnet.validator, fast, slow)).status == 200
    refused = await api.compare(subnet.validator, fast, slow, LeadOutcome.NOT_CONFIRMED)
    assert refused.status == 409
    assert "recorded already" in refused.detail
    assert await board(api) == [fast, slow]


async def test_what_cannot_be_is_refused_and_nothing_is_stored(api: Client, subnet: Subnet) -> None:
    slow, fast = await passed(api, subnet, "miner", 1000.0), await passed(api, subnet, "rival", 2000.0)
    queued = (await api.submit(subnet.sibling, Code("queued"))).submission_id
    for later, earlier, status, words in (
        (slow, fast, 409, f"submission {slow} is not later than submission {fast}"),
        (fast, fast, 409, "is not later"),
        (queued, fast, 409, f"submission {queued} has no final verdict of hotkey"),
        (999, slow, 404, "there is no submission 999"),
    ):
        reply = await api.compare(subnet.validator, later, earlier)
        assert reply.status == status
        assert words in reply.detail
    assert (await api.compare(subnet.rival, fast, slow)).status == 403
    foreign = comparison_message(subnet.validator2, fast, slow)
    assert (await api.post("/comparisons", foreign, subnet.validator)).status == 403
    forged = comparison_message(subnet.validator, fast, slow).model_copy(update={"ratio": 9.0})
    assert (await api.post("/comparisons", forged, subnet.validator)).status == 401
    assert (await detail(api, fast)).comparisons == []


@pytest.mark.parametrize(
    ("outcome", "fields", "field"),
    [
        (LeadOutcome.INFRASTRUCTURE, {}, "outcome"),
        (LeadOutcome.CONFIRMED, {"ratio": 1.02}, "ratio"),
        (LeadOutcome.CONFIRMED, {"ratio": None}, "ratio"),
        (LeadOutcome.NOT_CONFIRMED, {"ratio": 1.03}, "ratio"),
        (LeadOutcome.CONFIRMED, {"rules_version": 99}, "rules_version"),
    ],
)
async def test_fields_that_contradict_the_outcome_are_named(
    outcome: LeadOutcome, fields: dict[str, Any], field: str, api: Client, subnet: Subnet
) -> None:
    reply = await api.compare(subnet.validator, 2, 1, outcome, **fields)
    assert reply.status == 422
    assert [problem["field"] for problem in reply.detail] == [field]
