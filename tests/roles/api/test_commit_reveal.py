"""Commit, wait in blocks, reveal."""

import asyncio
import hashlib

import pytest

from node.settings_model import Settings
from protocol.commitments import seed_commitment_hash
from protocol.messages import CommitSubmissionAnswer, SubmissionDetail
from protocol.signing import receipt_text, verify_text
from tests.roles.api.harness import (
    SALT,
    TARGET,
    Client,
    Code,
    Subnet,
    commit_message,
    reveal_message,
    running,
    submit_message,
)


async def test_commit_gives_a_receipt_signed_by_the_api(api: Client, subnet: Subnet) -> None:
    height = subnet.chain.height()
    answer = await api.commit(subnet.miner, Code())
    assert answer.reveal_block == height + 100
    assert answer.expires_block == height + 400
    assert answer.receipt.block_number == height
    assert answer.receipt.block_hash == subnet.chain.block_hash(height)
    assert answer.receipt.api_hotkey == api.hotkey
    verify_text(api.hotkey, receipt_text(answer.receipt), answer.receipt.signature)


async def test_same_commit_again_gives_the_same_record(api: Client, subnet: Subnet) -> None:
    first = await api.commit(subnet.miner, Code())
    subnet.chain.advance(3)
    assert await api.commit(subnet.miner, Code()) == first


async def test_commits_sent_at_once_become_one_record(api: Client, subnet: Subnet) -> None:
    answers = await asyncio.gather(*(api.commit(subnet.miner, Code()) for _ in range(8)))
    assert len({answer.submission_id for answer in answers}) == 1
    assert len((await api.get("/submissions")).body) == 1


async def test_commit_of_a_known_hash_for_another_length_is_409(api: Client, subnet: Subnet) -> None:
    await api.commit(subnet.miner, Code())
    reply = await api.post(
        "/commit_submission", commit_message(subnet.miner, Code().bound_hash(subnet.miner), target=5)
    )
    assert reply.status == 409
    assert str(TARGET) in reply.detail


async def test_copied_hash_is_a_commitment_of_its_own(api: Client, subnet: Subnet) -> None:
    mine = await api.commit(subnet.miner, Code())
    copied = await api.post(
        "/commit_submission", commit_message(subnet.rival, Code().bound_hash(subnet.miner))
    )
    assert copied.status == 200
    assert copied.body["submission_id"] != mine.submission_id


async def test_reveal_follows_the_chain_and_not_the_clock(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code())
    message = reveal_message(subnet.miner, committed.submission_id, Code())
    early = await api.post("/reveal_submission", message)
    assert early.status == 425
    assert "100 blocks left" in early.detail
    subnet.chain.advance(99)
    early = await api.post("/reveal_submission", message)
    assert early.status == 425
    assert "1 blocks left" in early.detail
    subnet.chain.advance(1)
    reply = await api.post("/reveal_submission", message)
    assert reply.status == 200
    assert reply.body["is_revealed"] is True
    assert reply.body["commit_hash"] == Code().commit_hash


async def test_same_reveal_again_gives_the_same_record(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code())
    subnet.chain.advance(100)
    message = reveal_message(subnet.miner, committed.submission_id, Code())
    first = await api.post("/reveal_submission", message)
    # Also long after the window: the record is what counts.
    subnet.chain.advance(1000)
    again = await api.post("/reveal_submission", message)
    assert (first.status, again.status) == (200, 200)
    assert first.body == again.body
    other = Code(tokens_per_sec=7.0)
    reply = await api.post("/reveal_submission", reveal_message(subnet.miner, committed.submission_id, other))
    assert reply.status == 409


async def test_reveal_at_the_last_block_of_the_window(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code())
    subnet.chain.advance(399)
    reply = await api.post(
        "/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code())
    )
    assert reply.status == 200


async def test_expired_commitment(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code())
    subnet.chain.advance(400)
    reply = await api.post(
        "/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code())
    )
    assert reply.status == 410
    assert f"expired at block {committed.expires_block}" in reply.detail
    detail = (await api.get(f"/submissions/{committed.submission_id}")).body
    assert detail["state"] == "expired"
    assert (await api.get("/pending_reveals")).body["pending_reveals"] == []


@pytest.mark.parametrize(
    "wrong", [Code(salt="cd" * 16), Code(name="other code"), Code(owner="somebody-else")]
)
async def test_reveal_that_does_not_open_the_commitment(api: Client, subnet: Subnet, wrong: Code) -> None:
    committed = await api.commit(subnet.miner, Code())
    subnet.chain.advance(100)
    reply = await api.post("/reveal_submission", reveal_message(subnet.miner, committed.submission_id, wrong))
    assert reply.status == 400
    assert wrong.commit_hash in reply.detail
    # Nothing was half-written: the right reveal still works.
    right = await api.post(
        "/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code())
    )
    assert right.status == 200


async def test_reveal_of_another_hotkeys_commitment_or_of_none(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code())
    subnet.chain.advance(100)
    stolen = await api.post(
        "/reveal_submission", reveal_message(subnet.rival, committed.submission_id, Code())
    )
    assert stolen.status == 403
    for number in (99, 2**63 - 1, 2**63, 10**30):
        missing = await api.post("/reveal_submission", reveal_message(subnet.miner, number, Code()))
        assert missing.status == 404
        assert str(number) in missing.detail


async def test_time_of_the_code_depends_on_the_form(api: Client, subnet: Subnet) -> None:
    bound = await api.commit(subnet.miner, Code("bound"))
    seed_code = Code("seed")
    reply = await api.post(
        "/commit_submission", commit_message(subnet.miner, seed_commitment_hash(SALT, seed_code.url))
    )
    seed = CommitSubmissionAnswer.model_validate(reply.body)
    assert hashlib.sha256((SALT + seed_code.url).encode()).hexdigest() == seed.commitment_hash
    subnet.chain.advance(100)
    for submission_id, code in ((bound.submission_id, Code("bound")), (seed.submission_id, seed_code)):
        reply = await api.post("/reveal_submission", reveal_message(subnet.miner, submission_id, code))
        assert reply.status == 200
    details = [
        SubmissionDetail.model_validate((await api.get(f"/submissions/{number}")).body)
        for number in (bound.submission_id, seed.submission_id)
    ]
    assert details[0].code_fixed_at == details[0].created_at
    assert details[1].code_fixed_at is not None
    assert details[1].code_fixed_at > details[1].created_at


async def test_pending_reveals(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code())
    body = (await api.get("/pending_reveals")).body
    [pending] = body["pending_reveals"]
    assert body["current_block"] == subnet.chain.height()
    assert pending["submission_id"] == committed.submission_id
    assert pending["commitment_hash"] == committed.commitment_hash[:16] + "..."
    assert pending["blocks_remaining"] == 100
    assert pending["can_reveal"] is False
    subnet.chain.advance(100)
    await api.post("/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code()))
    assert (await api.get("/pending_reveals")).body["pending_reveals"] == []


async def test_unrevealed_commitments_are_limited(api: Client, subnet: Subnet) -> None:
    for number in range(16):
        await api.commit(subnet.miner, Code(f"kernel {number}"))
    reply = await api.post("/commit_submission", commit_message(subnet.miner, "0" * 64))
    assert reply.status == 429
    assert int(reply.headers["Retry-After"]) > 0
    # An identical repeat is no new commitment.
    await api.commit(subnet.miner, Code("kernel 3"))


async def test_direct_submission(api: Client, subnet: Subnet) -> None:
    first = await api.submit(subnet.miner, Code())
    assert await api.submit(subnet.miner, Code()) == first
    assert first.fork_url == Code().url
    detail = (await api.get(f"/submissions/{first.submission_id}")).body
    assert detail["state"] == "queued"
    assert detail["code_fixed_at"] == detail["created_at"]
    changed = await api.post("/submit_kernel", submit_message(subnet.miner, Code(tokens_per_sec=2.0)))
    assert changed.status == 409
    second = await api.post("/submit_kernel", submit_message(subnet.miner, Code("second")))
    assert second.status == 409
    assert f"submission {first.submission_id}" in second.detail
    assert "queued" in second.detail
    # Another hotkey is not concerned.
    await api.submit(subnet.rival, Code())


async def test_same_code_cannot_enter_twice(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code())
    direct = await api.submit(subnet.miner, Code())
    subnet.chain.advance(100)
    reply = await api.post(
        "/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code())
    )
    assert reply.status == 409
    assert f"submission {direct.submission_id}" in reply.detail


async def test_reveal_when_another_submission_is_queued(api: Client, subnet: Subnet) -> None:
    committed = await api.commit(subnet.miner, Code("one"))
    await api.submit(subnet.miner, Code("two"))
    subnet.chain.advance(100)
    reply = await api.post(
        "/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code("one"))
    )
    assert reply.status == 200


async def test_everything_survives_a_restart(settings: Settings, subnet: Subnet) -> None:
    async with running(settings) as api:
        committed = await api.commit(subnet.miner, Code())
        hotkey = api.hotkey
    subnet.chain.advance(100)
    async with running(settings) as api:
        assert api.hotkey == hotkey
        assert await api.commit(subnet.miner, Code()) == committed
        reply = await api.post(
            "/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code())
        )
        assert reply.status == 200
