"""Who may call what."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from node.settings_model import Settings
from protocol.auth import sign_request
from protocol.signing import sign_text
from protocol.verdicts import LogitOutcome
from tests.roles.api.harness import (
    Client,
    Code,
    Subnet,
    commit_message,
    logit_message,
    registration,
    reveal_message,
    running,
    submit_message,
    with_api,
)

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was signed a moment ago does not grow too old, however long a slow machine takes."""
    monkeypatch.setattr("protocol.auth.MAX_AGE_S", 300.0)


@pytest.mark.parametrize("signature", ["00", "0x" + "00" * 64, "ab" * 64, "ab" * 65])
async def test_wrong_body_signatures(api: Client, subnet: Subnet, signature: str) -> None:
    for path, message in (
        ("/commit_submission", commit_message(subnet.miner, "ab" * 32)),
        ("/reveal_submission", reveal_message(subnet.miner, 1, Code())),
        ("/submit_kernel", submit_message(subnet.miner, Code())),
    ):
        reply = await api.post(path, message.model_copy(update={"signature": signature}))
        assert reply.status == 401, path
        assert "signature" in reply.detail
    assert (await api.get("/submissions")).body == []


async def test_signature_over_other_values(api: Client, subnet: Subnet) -> None:
    message = submit_message(subnet.miner, Code())
    for change in (
        {"tokens_per_sec": 2.0},
        {"commit_hash": "1" * 40},
        {"target_sequence_length": 5},
        {"miner_hotkey": subnet.rival.ss58_address},
    ):
        reply = await api.post("/submit_kernel", message.model_copy(update=change))
        assert reply.status == 401, change


async def test_hotkey_that_is_not_an_address(api: Client, subnet: Subnet) -> None:
    message = submit_message(subnet.miner, Code()).model_copy(update={"miner_hotkey": "1" * 48})
    assert (await api.post("/submit_kernel", message)).status == 401


async def test_hotkey_that_is_not_registered(api: Client, subnet: Subnet) -> None:
    for path, message in (
        ("/commit_submission", commit_message(subnet.stranger, "ab" * 32)),
        ("/submit_kernel", submit_message(subnet.stranger, Code())),
    ):
        reply = await api.post(path, message)
        assert reply.status == 403
        assert "not registered on subnet 24" in reply.detail


async def test_hotkey_that_registers_is_let_in_without_a_restart(api: Client, subnet: Subnet) -> None:
    message = submit_message(subnet.stranger, Code())
    assert (await api.post("/submit_kernel", message)).status == 403
    subnet.chain.register(registration("stranger", "cold-s"))
    await asyncio.sleep(0.3)
    assert (await api.post("/submit_kernel", message)).status == 200


async def test_validator_endpoints_need_a_validator(api: Client, subnet: Subnet) -> None:
    paths = {
        "/evaluations/lease": b"",
        "/evaluations/1/heartbeat": b'{"lease_id": "x"}',
        "/evaluations/1/verdict": b"{}",
        "/record_verification": b"{}",
    }
    for path, data in paths.items():
        unsigned = await api.post(path, data)
        assert unsigned.status == 401, path
        for caller, word in (
            (subnet.miner, "permit"),
            (subnet.poor, "stake"),
            (subnet.stranger, "not registered"),
        ):
            reply = await api.post(path, data, caller)
            assert reply.status == 403, path
            assert word in reply.detail


async def test_permit_that_is_taken_away(api: Client, subnet: Subnet) -> None:
    assert await api.lease(subnet.validator) is None
    subnet.chain.adjust(subnet.validator.ss58_address, validator_permit=False)
    await asyncio.sleep(0.3)
    assert (await api.post("/evaluations/lease", b"", subnet.validator)).status == 403


@pytest.mark.usefixtures("patient")
async def test_replayed_request(api: Client, subnet: Subnet) -> None:
    await api.submit(subnet.miner, Code("a"))
    await api.submit(subnet.rival, Code("b"))
    headers = JSON | api.signature(subnet.validator, "POST", "/evaluations/lease", b"")
    assert (await api.send("POST", "/evaluations/lease", b"", headers)).status == 200
    replayed = await api.send("POST", "/evaluations/lease", b"", headers)
    assert replayed.status == 401
    assert "received before" in replayed.detail


async def test_nonces_outlive_a_restart(settings: Settings, subnet: Subnet) -> None:
    async with running(settings) as api:
        headers = JSON | api.signature(subnet.validator, "POST", "/evaluations/lease", b"")
        assert (await api.send("POST", "/evaluations/lease", b"", headers)).status == 204
    async with running(settings) as api:
        assert (await api.send("POST", "/evaluations/lease", b"", headers)).status == 401


@pytest.mark.usefixtures("patient")
async def test_request_signed_for_something_else(api: Client, subnet: Subnet) -> None:
    lease = "/evaluations/lease"
    signatures = {
        "another receiver": api.signature(
            subnet.validator, "POST", lease, b"", receiver=subnet.miner.ss58_address
        ),
        "no receiver": sign_request(subnet.validator, method="POST", path=lease, body=b"", receiver=None),
        "another path": api.signature(subnet.validator, "POST", "/record_verification", b""),
        "another method": api.signature(subnet.validator, "GET", lease, b""),
        "another body": api.signature(subnet.validator, "POST", lease, b"{}"),
        "long ago": sign_request(
            subnet.validator, method="POST", path=lease, body=b"", receiver=api.hotkey, nonce_ns=1
        ),
    }
    for what, headers in signatures.items():
        reply = await api.send("POST", lease, b"", JSON | headers)
        assert reply.status == 401, what
    good = api.signature(subnet.validator, "POST", lease, b"")
    for name in ("X-Bittensor-Signature", "X-Bittensor-Nonce", "X-Bittensor-Hotkey"):
        for value in ("", "zz", "0x00", "-1", "1" * 400):
            reply = await api.send("POST", lease, b"", JSON | good | {name: value})
            assert reply.status == 401, (name, value)
    # The query is part of what is signed.
    assert (await api.send("POST", lease + "?x=1", b"", JSON | good)).status == 401
    assert (await api.send("POST", lease, b"", JSON | good)).status == 204


async def test_one_hotkey_cannot_act_for_another(api: Client, subnet: Subnet) -> None:
    own = submit_message(subnet.miner, Code())
    assert (await api.post("/submit_kernel", own, subnet.rival)).status == 403
    assert (await api.post("/submit_kernel", own, subnet.miner)).status == 200
    check = logit_message(subnet.validator, subnet.miner, LogitOutcome.PASSED)
    assert (await api.post("/record_verification", check, subnet.validator2)).status == 403


async def test_signed_request_does_not_replace_the_signature_of_the_body(api: Client, subnet: Subnet) -> None:
    message = submit_message(subnet.miner, Code()).model_copy(update={"signature": "00" * 64})
    assert (await api.post("/submit_kernel", message, subnet.miner)).status == 401


async def test_legacy_headers_work_only_when_allowed(settings: Settings, subnet: Subnet) -> None:
    address = subnet.miner.ss58_address
    headers = JSON | {"Hotkey": address, "Signature": sign_text(subnet.miner, address)}
    message = submit_message(subnet.miner, Code()).model_copy(update={"signature": "00"})
    data = message.model_dump_json().encode()
    async with running(settings) as api:
        assert (await api.send("POST", "/submit_kernel", data, headers)).status == 401
    async with running(with_api(settings, legacy_auth=True)) as api:
        forged = headers | {"Signature": sign_text(subnet.rival, address)}
        assert (await api.send("POST", "/submit_kernel", data, forged)).status == 401
        foreign = {"Hotkey": subnet.rival.ss58_address}
        foreign |= {"Signature": sign_text(subnet.rival, subnet.rival.ss58_address)}
        assert (await api.send("POST", "/submit_kernel", data, JSON | foreign)).status == 403
        assert (await api.send("POST", "/submit_kernel", data, headers)).status == 200


async def test_logit_checks_of_strangers_and_from_the_future(api: Client, subnet: Subnet) -> None:
    stranger = logit_message(subnet.validator, subnet.stranger, LogitOutcome.PASSED)
    reply = await api.post("/record_verification", stranger, subnet.validator)
    assert reply.status == 404
    assert "miner_hotkey" in reply.detail
    future = logit_message(
        subnet.validator, subnet.miner, LogitOutcome.PASSED, datetime.now(UTC) + timedelta(hours=1)
    )
    reply = await api.post("/record_verification", future, subnet.validator)
    assert reply.status == 422
    assert reply.detail[0]["field"] == "checked_at"
    forged = logit_message(subnet.validator, subnet.miner, LogitOutcome.FAILED).model_copy(
        update={"outcome": LogitOutcome.PASSED}
    )
    assert (await api.post("/record_verification", forged, subnet.validator)).status == 401
    assert (await api.get("/verifications")).body == []


async def test_logit_check_twice_is_one(api: Client, subnet: Subnet) -> None:
    message = logit_message(subnet.validator, subnet.miner, LogitOutcome.PASSED)
    for _ in range(2):
        assert (await api.post("/record_verification", message, subnet.validator)).status == 200
    other = logit_message(subnet.validator, subnet.miner, LogitOutcome.FAILED, message.checked_at)
    assert (await api.post("/record_verification", other, subnet.validator)).status == 409
    [entry] = (await api.get("/verifications")).body
    assert entry["outcome"] == "passed"
