"""Commit, wait, push, reveal: through crashes at every stage and an API that loses answers."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from node.journal import Journal
from protocol.commitments import CommitmentForm, match_commitment
from protocol.errors import ApiUnavailable
from protocol.events import CommitmentRecorded, SubmissionRevealed
from roles.miner.ledger import Stage, SubmissionLedger
from tests.roles.api.harness import Client
from tests.roles.miner.harness import KEY, TARGET, Miner
from tests.roles.proxy import SwitchedProxy


def branches(remote: str) -> list[str]:
    """Commit hashes that the remote's branches show."""
    listing = subprocess.run(
        ["git", "ls-remote", "--heads", remote], capture_output=True, text=True, check=True
    )
    return [line.split()[0] for line in listing.stdout.splitlines()]


async def test_submission_is_committed_pushed_when_due_and_revealed_once(
    miner: Miner, proxy: SwitchedProxy, api: Client, remote: str
) -> None:
    await miner.start()
    offered = await miner.offer()
    committed = await miner.until_stage(Stage.COMMITTED)
    assert branches(remote) == []

    await miner.tick(9)
    await miner.until(lambda: _height_is_known(miner))
    assert (await miner.ledger.all())[0].stage is Stage.COMMITTED
    assert branches(remote) == []

    await miner.tick(1)
    revealed = await miner.until_stage(Stage.REVEALED)
    assert branches(remote) == [offered.commit_hash]
    assert proxy.accepted("/commit_submission") == 1
    assert proxy.accepted("/reveal_submission") == 1
    detail = (await api.get(f"/submissions/{revealed.submission_id}")).body
    assert detail["state"] == "queued"
    assert detail["claimed_tokens_per_sec"] == 950.0
    assert detail["reveal_block"] == committed.reveal_block
    form = match_commitment(
        revealed.key,
        salt=revealed.salt,
        miner_hotkey=miner.api.hotkey,
        target_sequence_length=TARGET,
        fork_url=remote,
        commit_hash=offered.commit_hash,
    )
    assert form is CommitmentForm.BOUND
    assert [event.reveal_block for event in miner.recorder.of(CommitmentRecorded)] == [committed.reveal_block]
    assert [event.submission_id for event in miner.recorder.of(SubmissionRevealed)] == [
        revealed.submission_id
    ]


async def _height_is_known(miner: Miner) -> bool:
    return miner.coordinator._heights.height == miner.subnet.chain.height()


async def test_salt_is_on_disk_encrypted_before_the_commitment_leaves(
    miner: Miner, proxy: SwitchedProxy
) -> None:
    proxy.cut_before["/commit_submission"] = 10_000
    await miner.start()
    await miner.offer()
    drafted = await miner.until_stage(Stage.DRAFTED)
    assert proxy.posts == []
    assert len(drafted.salt) >= 32
    raw = b"".join(path.read_bytes() for path in miner.settings.node.data_dir.glob("miner.sqlite*"))
    assert drafted.salt.encode() not in raw
    assert drafted.key.encode() in raw
    assert drafted.salt not in repr(drafted)


@pytest.mark.parametrize("fault", ["cut_before", "cut_after"])
@pytest.mark.parametrize("path", ["/commit_submission", "/reveal_submission"])
async def test_lost_requests_and_lost_answers_lead_to_one_reveal(
    miner: Miner, proxy: SwitchedProxy, path: str, fault: str
) -> None:
    getattr(proxy, fault)[path] = 1
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    await miner.tick(10)
    await miner.until_stage(Stage.REVEALED)
    assert proxy.accepted("/reveal_submission") == 1
    assert len(await miner.ledger.all()) == 1


async def test_crash_before_the_commitment_was_sent(miner: Miner, proxy: SwitchedProxy) -> None:
    proxy.cut_before["/commit_submission"] = 10_000
    await miner.start()
    await miner.offer()
    drafted = await miner.until_stage(Stage.DRAFTED)
    await miner.kill()
    proxy.cut_before.clear()
    await miner.start()
    committed = await miner.until_stage(Stage.COMMITTED)
    assert (committed.key, committed.salt) == (drafted.key, drafted.salt)
    assert proxy.accepted("/commit_submission") == 1


async def test_crash_after_the_commitment_was_taken_but_not_noted(
    miner: Miner, proxy: SwitchedProxy, api: Client
) -> None:
    await miner.start()
    await miner.offer()
    committed = await miner.until_stage(Stage.COMMITTED)
    await miner.kill()
    await _set_back(miner, Stage.DRAFTED)
    await miner.start()
    again = await miner.until_stage(Stage.COMMITTED)
    assert again.submission_id == committed.submission_id
    assert len((await api.get("/pending_reveals")).body["pending_reveals"]) == 1


async def test_crash_while_waiting_and_blocks_pass_meanwhile(
    miner: Miner, proxy: SwitchedProxy, remote: str
) -> None:
    await miner.start()
    offered = await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    await miner.kill()
    miner.subnet.chain.advance(15)
    await miner.start()
    await miner.until_stage(Stage.REVEALED)
    assert branches(remote) == [offered.commit_hash]
    assert proxy.accepted("/reveal_submission") == 1


async def test_crash_after_the_push(miner: Miner, proxy: SwitchedProxy, remote: str) -> None:
    proxy.cut_before["/reveal_submission"] = 10_000
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    await miner.tick(10)
    await miner.until_stage(Stage.PUSHED)
    await miner.kill()
    proxy.cut_before.clear()
    await miner.start()
    await miner.until_stage(Stage.REVEALED)
    assert proxy.accepted("/reveal_submission") == 1


async def test_crash_after_the_reveal_was_taken_but_not_noted(miner: Miner, proxy: SwitchedProxy) -> None:
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    await miner.tick(10)
    await miner.until_stage(Stage.REVEALED)
    await miner.kill()
    await _set_back(miner, Stage.PUSHED)
    await miner.start()
    await miner.until_stage(Stage.REVEALED)
    assert [post for post in proxy.posts if post[0] == "/reveal_submission"] == [("/reveal_submission", 200)]


async def _set_back(miner: Miner, stage: Stage) -> None:
    """Make the journal what it was a moment before the last write."""
    async with Journal(miner.settings.node.data_dir / "miner.sqlite", KEY) as journal:
        ledger = SubmissionLedger(journal)
        (submission,) = await ledger.all()
        await ledger.advance(submission, stage)


async def test_several_commitments_in_flight_each_see_their_commit_on_the_remote(
    miner: Miner, proxy: SwitchedProxy, remote: str
) -> None:
    await miner.start()
    first = await miner.offer("x = 1\n")
    await miner.until_stage(Stage.COMMITTED)
    await miner.tick(3)
    second = await miner.offer("x = 2\n")
    third = await miner.offer("x = 3\n")
    await miner.until_stage(Stage.COMMITTED, count=3)

    await miner.tick(7)
    await miner.until(lambda: _revealed(miner, 1))
    assert branches(remote) == [first.commit_hash]
    await miner.tick(20 - 7)
    await miner.until_stage(Stage.REVEALED)
    assert proxy.accepted("/reveal_submission") == 3
    assert branches(remote)[0] in (second.commit_hash, third.commit_hash)


async def _revealed(miner: Miner, count: int) -> bool:
    return len(await miner.ledger.all(Stage.REVEALED)) == count


async def test_commitment_that_missed_its_window_expires_and_its_code_stays_secret(
    miner: Miner, proxy: SwitchedProxy, remote: str
) -> None:
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    await miner.kill()
    miner.subnet.chain.advance(30)
    await miner.start()
    expired = await miner.until_stage(Stage.EXPIRED)
    assert str(expired.expires_block) in expired.reason
    assert branches(remote) == []
    assert proxy.accepted("/reveal_submission") == 0


async def test_reveal_that_the_api_calls_expired_is_over(
    miner: Miner, proxy: SwitchedProxy, api: Client
) -> None:
    proxy.cut_before["/reveal_submission"] = 10_000
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    await miner.tick(10)
    await miner.until_stage(Stage.PUSHED)
    height = miner.subnet.chain.advance(30)

    async def api_has_seen_it() -> bool:
        return bool((await api.get("/pending_reveals")).body["current_block"] == height)

    await miner.until(api_has_seen_it)
    proxy.cut_before.clear()
    expired = await miner.until_stage(Stage.EXPIRED)
    assert "expired at block" in expired.reason


async def test_early_for_the_api_waits_for_the_next_block(miner: Miner, proxy: SwitchedProxy) -> None:
    proxy.replies["/reveal_submission"] = [_refusal(425, "1 blocks left")]
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    await miner.tick(10)
    await miner.until_stage(Stage.PUSHED)
    await miner.until(lambda: _was_refused(proxy))
    assert proxy.accepted("/reveal_submission") == 0
    await miner.tick(1)
    await miner.until_stage(Stage.REVEALED)


async def _was_refused(proxy: SwitchedProxy) -> bool:
    return not proxy.replies["/reveal_submission"]


async def test_refused_commitment_is_rejected_with_the_apis_sentence(
    miner: Miner, proxy: SwitchedProxy
) -> None:
    proxy.replies["/commit_submission"] = [_refusal(403, "hotkey is not registered")]
    await miner.start()
    await miner.offer()
    rejected = await miner.until_stage(Stage.REJECTED)
    assert "hotkey is not registered" in rejected.reason
    assert "403" in rejected.reason
    assert rejected.submission_id is None


async def test_limited_commitment_is_sent_again(miner: Miner, proxy: SwitchedProxy) -> None:
    proxy.replies["/commit_submission"] = [_refusal(429, "slow down", {"Retry-After": "0"})]
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)


async def test_ban_of_the_address_is_waited_for(
    miner: Miner, proxy: SwitchedProxy, caplog: pytest.LogCaptureFixture
) -> None:
    ban = _refusal(403, "address 127.0.0.1 is banned for another 0.0 hours", {"Retry-After": "1"})
    proxy.replies["/commit_submission"] = [ban]
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    assert "this address is banned, the submission waits" in caplog.text


def _refusal(status: int, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"detail": detail}, status=status, headers=headers)


async def test_same_candidate_twice_is_one_submission(miner: Miner, proxy: SwitchedProxy) -> None:
    await miner.start()
    offered = await miner.offer()
    await miner.bus.publish(offered)
    await miner.until_stage(Stage.COMMITTED)
    await miner.kill()
    await miner.start()
    await miner.bus.publish(offered)
    other = await miner.offer("x = 2\n")
    await miner.until_stage(Stage.COMMITTED, count=2)
    assert [one.commit_hash for one in await miner.ledger.all()] == [offered.commit_hash, other.commit_hash]


async def test_direct_submission_pushes_first_and_waits_in_line(
    miner: Miner, proxy: SwitchedProxy, api: Client, remote: str, caplog: pytest.LogCaptureFixture
) -> None:
    miner.change(submission="direct")
    await miner.start()
    first = await miner.offer("x = 1\n")
    await miner.until_stage(Stage.REVEALED)
    assert branches(remote) == [first.commit_hash]
    assert (await miner.ledger.all())[0].salt is None

    await miner.offer("x = 2\n")

    async def waits_in_line() -> bool:
        return "will be tried again" in caplog.text

    await miner.until(waits_in_line)
    assert ("/submit_kernel", 409) in proxy.posts
    lease = await api.lease(miner.subnet.validator)
    assert lease is not None
    assert lease.fork_url == remote
    await api.judge(miner.subnet.validator, lease)
    await miner.until(lambda: _accepted(proxy, "/submit_kernel", 2))


async def _accepted(proxy: SwitchedProxy, path: str, count: int) -> bool:
    return proxy.accepted(path) == count


async def test_direct_resubmission_of_revealed_code_is_rejected(miner: Miner, api: Client) -> None:
    miner.change(submission="direct")
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.REVEALED)
    lease = await api.lease(miner.subnet.validator)
    assert lease is not None
    await api.judge(miner.subnet.validator, lease)
    await miner.until_stage(Stage.JUDGED)
    await miner.kill()
    async with Journal(miner.settings.node.data_dir / "miner.sqlite", KEY) as journal:
        (record,) = await journal.list("submission")
        await journal.delete("submission", record.key)
    await miner.start()
    await miner.offer(claim_tokens_per_sec=1.0)
    rejected = await miner.until_stage(Stage.REJECTED)
    assert "already" in rejected.reason


async def test_nothing_of_the_salt_in_the_log(
    miner: Miner, proxy: SwitchedProxy, caplog: pytest.LogCaptureFixture
) -> None:
    for part in ("roles", "node"):
        caplog.set_level("DEBUG", logger=part)
    proxy.cut_after["/reveal_submission"] = 1
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    await miner.tick(10)
    revealed = await miner.until_stage(Stage.REVEALED)
    assert caplog.text
    assert revealed.salt not in caplog.text


async def test_receipt_is_kept(miner: Miner) -> None:
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    (record,) = await miner.journal.list("submission")
    receipt: dict[str, Any] = record.data["receipt"]
    assert receipt["commitment_hash"] == record.key
    assert receipt["signature"]
    assert json.dumps(receipt)


async def test_work_tree_that_is_gone_is_reported_and_waited_for(
    miner: Miner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await miner.start()
    await miner.offer()
    await miner.until_stage(Stage.COMMITTED)
    tree = tmp_path / "miner/quasar_work/flash-linear-attention"
    tree.rename(tmp_path / "elsewhere")
    await miner.tick(10)
    await miner.until(lambda: _logged(caplog, "is gone"))
    (tmp_path / "elsewhere").rename(tree)
    await miner.until_stage(Stage.REVEALED)


async def _logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


async def test_api_that_is_away_is_an_error_of_its_own(miner: Miner, proxy: SwitchedProxy) -> None:
    await miner.open()
    proxy.cut_before["/reveal_submission"] = 1
    with pytest.raises(ApiUnavailable):
        await miner.api.reveal(1, salt="ab" * 16, fork_url="x", commit_hash="0" * 40, tokens_per_sec=1.0)
    assert proxy.posts == []
