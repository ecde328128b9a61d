"""What the miner is told about its submissions."""

from datetime import UTC, datetime
from typing import Any

import pytest

from protocol.messages import StoredVerdict, SubmissionDetail
from protocol.verdicts import Fault, LogitOutcome, Status
from roles.miner.ledger import Stage, Submission
from roles.miner.verdicts import decisive
from tests.roles.api.harness import Client
from tests.roles.miner.harness import Miner
from tests.roles.proxy import SwitchedProxy


async def submitted(miner: Miner, text: str = "x = 1\n") -> Submission:
    """A direct submission of the miner's, revealed."""
    miner.change(submission="direct")
    await miner.start()
    await miner.offer(text)
    found: Submission = await miner.until_stage(Stage.REVEALED)
    return found


async def judge(miner: Miner, api: Client, **figures: Any) -> None:
    """Have the validator judge what is queued."""
    lease = await api.lease(miner.subnet.validator)
    assert lease is not None
    assert (await api.judge(miner.subnet.validator, lease, **figures)).status == 200


async def test_verdict_is_followed_and_kept_with_its_reason(
    miner: Miner, api: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await submitted(miner)
    await judge(
        miner,
        api,
        status=Status.WRONG_OUTPUT,
        fault=Fault.MINER,
        measured_tokens_per_sec=None,
        evidence={"reason": "cosine similarity 0.3 at token 17"},
    )
    judged = await miner.until_stage(Stage.JUDGED)
    assert judged.verdict is Status.WRONG_OUTPUT
    assert judged.reason == "cosine similarity 0.3 at token 17"
    assert judged.rank is None
    assert not judged.is_live
    assert "cosine similarity 0.3 at token 17" in caplog.text


async def test_rank_is_followed_after_the_verdict(miner: Miner, api: Client) -> None:
    await submitted(miner)
    await judge(miner, api)
    judged = await miner.until_stage(Stage.JUDGED)
    assert (judged.verdict, judged.rank, judged.is_live) == (Status.PASSED, None, True)
    await api.check_logits(miner.subnet.validator, miner.subnet.miner, LogitOutcome.PASSED)

    async def ranked() -> bool:
        return (await miner.ledger.all())[0].rank == 1

    await miner.until(ranked)


async def test_verdict_that_came_while_the_miner_was_down_is_found(miner: Miner, api: Client) -> None:
    await submitted(miner)
    await miner.kill()
    await judge(miner, api)
    await miner.start("follower")
    assert (await miner.until_stage(Stage.JUDGED)).verdict is Status.PASSED


async def test_api_outage_is_waited_out(miner: Miner, api: Client, proxy: SwitchedProxy) -> None:
    proxy.cut_before["/submissions"] = 5
    await submitted(miner)
    await judge(miner, api)
    assert (await miner.until_stage(Stage.JUDGED)).verdict is Status.PASSED


def stored(status: Status) -> StoredVerdict:
    """A verdict as the API shows it."""
    nothing = dict.fromkeys(
        (
            "measured_tokens_per_sec",
            "spread",
            "cosine_similarity",
            "max_abs_diff",
            "relative_error",
            "vram_mb",
        )
    )
    return StoredVerdict(
        **nothing,
        validator_hotkey="v",
        status=status,
        fault=Fault.NOBODY,
        gpu="cpu",
        versions={},
        rules_version=1,
        evidence={},
        signature="00",
        created_at=datetime.now(UTC),
    )


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ([], None),
        (["passed"], "passed"),
        (["passed", "crashed"], "crashed"),
        (["passed", "crashed", "passed"], "passed"),
        (["infrastructure"], "infrastructure"),
        (["infrastructure", "passed"], "passed"),
    ],
)
def test_more_than_half_decide(statuses: list[str], expected: str | None) -> None:
    detail = SubmissionDetail.model_construct(verdicts=[stored(Status(status)) for status in statuses])
    found = decisive(detail)
    assert (None if found is None else found.status.value) == expected
