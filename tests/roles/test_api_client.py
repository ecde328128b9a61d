"""The typed client against a running API."""

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert

from node.clock import SystemClock
from node.settings_model import ApiSection, Settings
from protocol.commitments import bound_commitment_hash
from protocol.errors import ApiRefused, ApiUnavailable, ConfigError
from protocol.messages import LeaseAnswer
from protocol.rules import RULES_VERSION
from protocol.signing import verify_message
from protocol.types import LeaseId, SubmissionId
from protocol.verdicts import Fault, LogitOutcome, Status
from roles.api import tables
from roles.api.database import Database, database_url
from roles.api_client import SubnetApi, is_about_content, is_final_refusal, open_api
from tests.roles.api.harness import Client, Key, Subnet, digest
from tests.roles.proxy import SwitchedProxy
from tests.roles.running_subnet import (
    api,
    api_settings,
    chain_settings,
    front_kind,
    migrated,
    private_caches,
    proxy,
    subnet,
)

__all__ = [
    "api",
    "api_settings",
    "chain_settings",
    "front_kind",
    "migrated",
    "private_caches",
    "proxy",
    "subnet",
]

SALT = "ab" * 16
URL = "https://github.com/miner/fork"
COMMIT = digest("kernel")
TARGET = 1_000_000


@pytest.fixture
async def client(api_settings: Settings, proxy: SwitchedProxy):  # type: ignore[no-untyped-def]
    """Opens typed clients for any key, and closes them."""
    opened: list[SubnetApi] = []

    def make(key: Key, **changes: object) -> SubnetApi:
        settings = api_settings.model_copy(
            update={"api": ApiSection(url=proxy.url)} | changes  # type: ignore[arg-type]
        )
        opened.append(open_api(settings, key, SystemClock()))
        return opened[-1]

    yield make
    for one in opened:
        await one.close()


async def committed(miner: SubnetApi) -> SubmissionId:
    """A commitment in the bound form."""
    text = bound_commitment_hash(SALT, miner.hotkey, TARGET, URL, COMMIT)
    answer = await miner.commit(text, TARGET)
    assert verify_message(answer.receipt) == answer.receipt.api_hotkey
    assert (await miner.commit(text, TARGET)).submission_id == answer.submission_id
    return SubmissionId(answer.submission_id)


async def leased(miner: SubnetApi, validator: SubnetApi) -> LeaseAnswer:
    """A direct submission in the hands of a validator."""
    assert await validator.lease() is None
    answer = await miner.submit(
        fork_url=URL, commit_hash=COMMIT, target_sequence_length=TARGET, tokens_per_sec=100.0
    )
    lease = await validator.lease()
    assert lease is not None
    assert lease.submission_id == answer.submission_id
    return lease


async def test_miner_commits_and_reveals(client, subnet: Subnet) -> None:  # type: ignore[no-untyped-def]
    miner = client(subnet.miner)
    number = await committed(miner)
    code = {"salt": SALT, "fork_url": URL, "commit_hash": COMMIT, "tokens_per_sec": 100.0}
    with pytest.raises(ApiRefused, match="10 blocks left") as caught:
        await miner.reveal(number, **code)
    assert caught.value.status == 425
    assert not is_final_refusal(caught.value)
    (pending,) = (await miner.pending_reveals()).pending_reveals
    assert pending.submission_id == number
    subnet.chain.advance(10)
    assert (await miner.reveal(number, **code)).is_revealed
    detail = await miner.submission(number)
    assert (detail.state, detail.claimed_tokens_per_sec) == ("queued", 100.0)
    assert [one.submission_id for one in await miner.submissions_of(miner.hotkey)] == [number]
    assert (await miner.current_round()).total_submissions == 1


async def test_validator_leases_and_judges(client, subnet: Subnet) -> None:  # type: ignore[no-untyped-def]
    miner, validator = client(subnet.miner), client(subnet.validator)
    lease = await leased(miner, validator)
    number, lease_id = SubmissionId(lease.submission_id), LeaseId(lease.lease_id)
    assert await validator.heartbeat(number, lease_id) >= lease.expires_at
    verdict = validator.sign_verdict(
        lease_id=lease_id,
        submission_id=number,
        status=Status.PASSED,
        fault=Fault.NOBODY,
        measured_tokens_per_sec=120.0,
        gpu="cpu",
        versions={"torch": "2.13.0"},
        rules_version=RULES_VERSION,
        evidence={"reason": "ok", "nothing": None, "trial_s": [0.1, 1e-9]},
    )
    assert (await validator.send_verdict(verdict)).status is Status.PASSED
    assert (await validator.send_verdict(verdict)).status is Status.PASSED
    (stored,) = (await miner.submission(number)).verdicts
    assert stored.evidence == verdict.evidence
    check = validator.sign_logit_check(
        miner_hotkey=miner.hotkey, outcome=LogitOutcome.PASSED, checked_at=SystemClock().now()
    )
    assert (await validator.send_logit_check(check)).outcome is LogitOutcome.PASSED
    (row,) = (await validator.leaderboard()).rows
    assert (row.miner_hotkey, row.tokens_per_sec) == (miner.hotkey, 120.0)


async def test_miner_reads_its_submissions_whoever_has_judged_them(  # type: ignore[no-untyped-def]
    client, api_settings: Settings, subnet: Subnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty-four validators with evidence as it is on a GPU, and every column as long as it may be."""
    monkeypatch.setattr("roles.api_client.ATTEMPT_S", 120.0)
    monkeypatch.setattr("roles.api_client.CALL_S", 240.0)
    miner = client(subnet.miner)
    evidence = {"reason": "r" * 3000, "seeds": [2**62] * 50, "trial_s": [0.0123] * 24, "log_tail": "w" * 4000}
    await judged_by_many(api_settings, subnet.miner, evidence, submissions=50, validators=64)
    listed = await miner.submissions_of(miner.hotkey)
    assert [one.submission_id for one in listed] == list(range(50, 50 - len(listed), -1))
    assert len(listed) >= 20
    assert all(len(one.verdicts) == 64 for one in listed)
    assert listed[0].verdicts[0].evidence == {"reason": "r" * 500}
    whole = await miner.submission(SubmissionId(50))
    assert {verdict.evidence["log_tail"] for verdict in whole.verdicts} == {"w" * 4000}
    assert whole.verdicts[0].evidence == evidence


async def judged_by_many(
    settings: Settings, miner: Key, evidence: dict[str, Any], *, submissions: int, validators: int
) -> None:
    """Judged submissions as the API stores them."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    judged = [
        {
            "id": number,
            "miner_hotkey": miner.ss58_address,
            "miner_coldkey": "cold",
            "target_sequence_length": TARGET,
            "created_at": now,
            "fork_url": URL,
            "commit_hash": digest(str(number)),
            "claimed_tokens_per_sec": 1.0,
            "revealed_at": now,
            "code_fixed_at": now,
            "round_number": 1,
            "judged_at": now,
        }
        for number in range(1, submissions + 1)
    ]
    given = [
        {
            "submission_id": one["id"],
            "validator_hotkey": f"{validator:048}",
            "lease_id": f"{one['id']}-{validator}",
            "attempt": 1,
            "is_final": True,
            "status": "passed",
            "fault": "nobody",
            "gpu": "NVIDIA H200",
            "versions": {"torch": "2.13.0"},
            "rules_version": RULES_VERSION,
            "evidence": evidence,
            "signature": "00" * 64,
            "created_at": now,
        }
        for one in judged
        for validator in range(validators)
    ]
    database = Database(database_url(None, settings.node.data_dir))
    try:
        await database.write(
            lambda connection: connection.execute(insert(tables.submissions), judged) and None
        )
        await database.write(lambda connection: connection.execute(insert(tables.verdicts), given) and None)
    finally:
        await database.close()


async def test_reveal_is_one_attempt_and_other_calls_are_repeated(  # type: ignore[no-untyped-def]
    client, subnet: Subnet, proxy: SwitchedProxy
) -> None:
    miner = client(subnet.miner)
    proxy.cut_before["/commit_submission"] = 1
    number = await committed(miner)
    proxy.cut_before["/reveal_submission"] = 1
    with pytest.raises(ApiUnavailable):
        await miner.reveal(number, salt=SALT, fork_url=URL, commit_hash=COMMIT, tokens_per_sec=1.0)
    assert proxy.cut_before["/reveal_submission"] == 0
    assert ("/reveal_submission", 425) not in proxy.posts


async def test_stranger_is_refused_for_good_as_sender_not_for_content(  # type: ignore[no-untyped-def]
    client, subnet: Subnet
) -> None:
    with pytest.raises(ApiRefused, match="not registered") as caught:
        await client(subnet.stranger).lease()
    assert caught.value.status == 403
    assert is_final_refusal(caught.value)
    assert not is_about_content(caught.value)
    with pytest.raises(ApiRefused) as caught:
        await client(subnet.miner).submission(SubmissionId(77))
    assert is_about_content(caught.value)


async def test_api_of_another_subnet_is_a_configuration_error(  # type: ignore[no-untyped-def]
    client, api_settings: Settings, subnet: Subnet
) -> None:
    other = client(subnet.validator, chain=api_settings.chain.model_copy(update={"netuid": 9}))
    with pytest.raises(ConfigError, match=r"netuid is 9 .* serves subnet 24"):
        await other.info()
    with pytest.raises(ConfigError, match="netuid"):
        await other.lease()
    # One that was right is somebody's mistake for a while, and ends no node that runs.
    right = client(subnet.validator)
    await right.info()
    right._receiver._netuid = 9
    with pytest.raises(ApiUnavailable, match="serves subnet 24"):
        await right.info()


async def test_info_names_the_receiver(client, subnet: Subnet, api: Client) -> None:  # type: ignore[no-untyped-def]
    assert (await client(subnet.miner).info()).hotkey == api.hotkey
