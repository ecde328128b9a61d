"""Endpoints of the existing network's clients."""

import pytest
from pydantic import BaseModel

from protocol.compatibility import CreateRound, MarkValidated, RecordFailure, RegisterMiner
from protocol.verdicts import Fault, LogitOutcome, Status
from tests.roles.api.harness import Client, Code, Subnet


async def test_weights_by_uid(api: Client, subnet: Subnet) -> None:
    assert (await api.get("/get_weights")).body["weights"] == []
    for miner, measured in ((subnet.miner, 2000.0), (subnet.rival, 1000.0)):
        await api.submit(miner, Code())
        lease = await api.lease(subnet.validator)
        assert lease is not None
        await api.judge(subnet.validator, lease, measured_tokens_per_sec=measured)
        await api.check_logits(subnet.validator, miner, LogitOutcome.PASSED)
    body = (await api.get("/get_weights")).body
    assert body["round_number"] == 1
    assert body["epoch"] == subnet.chain.height()
    assert [(entry["hotkey"], entry["weight"]) for entry in body["weights"]] == [
        (subnet.miner.ss58_address, 0.6),
        (subnet.rival.ss58_address, 0.25),
    ]
    assert len({entry["uid"] for entry in body["weights"]}) == 2


async def test_submission_rate(api: Client, subnet: Subnet) -> None:
    await api.submit(subnet.miner, Code())
    await api.submit(subnet.rival, Code())
    assert (await api.get("/get_submission_rate?window_minutes=4")).body == {
        "submissions_per_minute": 0.5,
        "recent_submissions": 2,
        "window_minutes": 4,
    }
    for wrong in ("0", "1441", "x", "-1"):
        reply = await api.get(f"/get_submission_rate?window_minutes={wrong}")
        assert reply.status == 422
        assert reply.detail[0]["field"] == "window_minutes"


async def test_verification_stats(api: Client, subnet: Subnet) -> None:
    assert (await api.get("/verification_stats")).body["pass_rate"] is None
    await api.check_logits(subnet.validator, subnet.miner, LogitOutcome.PASSED)
    await api.check_logits(subnet.validator, subnet.rival, LogitOutcome.FAILED)
    assert (await api.get("/verification_stats")).body == {
        "total_submissions": 2,
        "verified_passed": 1,
        "verified_failed": 1,
        "pending_verification": 0,
        "pass_rate": 0.5,
    }


async def test_register_miner_says_what_the_chain_says(api: Client, subnet: Subnet) -> None:
    message = RegisterMiner(hotkey=subnet.miner.ss58_address, model_name="m", league="1M")
    body = (await api.post("/register_miner", message)).body
    assert (body["status"], body["hotkey"]) == ("already_registered", subnet.miner.ss58_address)
    stranger = RegisterMiner(hotkey=subnet.stranger.ss58_address)
    assert (await api.post("/register_miner", stranger)).status == 403


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/mark_validated", MarkValidated(submission_id=1)),
        ("/record_failure", RecordFailure(submission_id=1)),
        ("/create_round", CreateRound()),
        ("/finalize_round/1", None),
    ],
)
async def test_writing_ones_need_a_validator(
    api: Client, subnet: Subnet, path: str, message: BaseModel | None
) -> None:
    body = b"" if message is None else message.model_dump_json().encode()
    assert (await api.post(path, body)).status == 401
    assert (await api.post(path, body, subnet.miner)).status == 403


async def test_a_verdict_is_what_marks_a_submission(api: Client, subnet: Subnet) -> None:
    validated, failed = MarkValidated(submission_id=1), RecordFailure(submission_id=1)
    assert (await api.post("/mark_validated", validated, subnet.validator)).status == 404
    await api.submit(subnet.miner, Code())
    assert (await api.post("/mark_validated", validated, subnet.validator)).status == 409
    lease = await api.lease(subnet.validator)
    assert lease is not None
    await api.judge(subnet.validator, lease, status=Status.CRASHED, fault=Fault.MINER)
    assert (await api.post("/mark_validated", validated, subnet.validator)).body == {
        "status": "ok",
        "submission_id": 1,
    }
    assert (await api.post("/record_failure", failed, subnet.validator)).status == 200
    # Another validator's verdict is not one's own.
    assert (await api.post("/record_failure", failed, subnet.validator2)).status == 409


async def test_rounds_are_not_made_by_request(api: Client, subnet: Subnet) -> None:
    before = (await api.get("/get_current_round")).body
    assert (await api.post("/create_round", CreateRound(duration_hours=1), subnet.validator)).status == 409
    assert (await api.post(f"/finalize_round/{before['id']}", b"", subnet.validator)).status == 409
    assert (await api.post("/finalize_round/999", b"", subnet.validator)).status == 404
    assert (await api.get("/get_current_round")).body["round_number"] == before["round_number"]
