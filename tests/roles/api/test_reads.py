"""Reading endpoints and the description."""

from typing import Any

from protocol.messages import ApiInfo, SubmissionStatsAnswer
from protocol.rules import RULES_VERSION
from protocol.verdicts import Fault, LogitOutcome, Status
from tests.roles.api.harness import Client, Code, Subnet


async def test_info(api: Client) -> None:
    info = ApiInfo.model_validate((await api.get("/info")).body)
    assert info.hotkey == api.hotkey
    assert (info.network, info.netuid, info.rules_version) == ("local", 24, RULES_VERSION)
    assert (info.blocks_until_reveal, info.reveal_window_blocks) == (100, 300)
    assert info.limits["max_body_bytes"] == 65_536
    assert info.limits["writes_per_minute_per_hotkey"] == 30


async def test_health(api: Client) -> None:
    assert (await api.get("/health")).body == {"status": "ok"}


async def test_submission_stats(api: Client, subnet: Subnet) -> None:
    empty = SubmissionStatsAnswer.model_validate((await api.get("/get_submission_stats")).body)
    assert empty.total_submissions == 0
    assert empty.stats.avg_tokens_per_sec is None
    await api.commit(subnet.miner, Code("never revealed"))
    for miner, name, measured in (
        (subnet.miner, "slow", 1000.0),
        (subnet.rival, "fast", 3000.0),
        (subnet.sibling, "wrong", None),
    ):
        await api.submit(miner, Code(name))
        lease = await api.lease(subnet.validator)
        assert lease is not None
        figures: dict[str, Any] = {"measured_tokens_per_sec": measured}
        if measured is None:
            figures |= {"status": Status.WRONG_OUTPUT, "fault": Fault.MINER}
        await api.judge(subnet.validator, lease, **figures)
        await api.check_logits(subnet.validator, miner, LogitOutcome.PASSED)
    slow, fast = 2, 3
    await api.compare(subnet.validator, fast, slow)
    stats = SubmissionStatsAnswer.model_validate((await api.get("/get_submission_stats?limit=2")).body)
    assert stats.total_submissions == 3
    assert [row.status for row in stats.recent_submissions] == ["wrong_output", "passed"]
    assert stats.stats.avg_tokens_per_sec == 2000.0
    assert stats.stats.max_tokens_per_sec == 3000.0
    assert stats.stats.min_tokens_per_sec == 1000.0
    assert [row.measured_tokens_per_sec for row in stats.top_performers] == [3000.0, 1000.0]
    assert [row.weighted_score for row in stats.top_performers] == [9000.0, 3000.0]


async def test_submissions_of_one_hotkey(api: Client, subnet: Subnet) -> None:
    mine = await api.commit(subnet.miner, Code())
    await api.submit(subnet.rival, Code())
    rows = (await api.get(f"/submissions?hotkey={subnet.miner.ss58_address}&limit=10")).body
    assert [row["submission_id"] for row in rows] == [mine.submission_id]
    assert rows[0]["state"] == "committed"
    assert rows[0]["reveal_block"] == mine.reveal_block
    assert rows[0]["claimed_tokens_per_sec"] is None
    assert (await api.get("/submissions?hotkey=nobody")).body == []
    newest_first = [row["submission_id"] for row in (await api.get("/submissions")).body]
    assert newest_first == sorted(newest_first, reverse=True)


async def test_lists_show_the_reason_and_one_submission_shows_all_evidence(
    api: Client, subnet: Subnet
) -> None:
    for miner in (subnet.miner, subnet.rival):
        await api.submit(miner, Code(str(miner.ss58_address)))
        lease = await api.lease(subnet.validator)
        assert lease is not None
        await api.judge(subnet.validator, lease, evidence={"reason": "agrees", "log_tail": "long"})
    await api.compare(subnet.validator, 2, 1, evidence={"reason": "scripted", "later": {"trial_s": [1.0]}})
    for one in (await api.get("/submissions")).body:
        assert [verdict["evidence"] for verdict in one["verdicts"]] == [{"reason": "agrees"}]
        assert [rerun["evidence"] for rerun in one["comparisons"]] == [{"reason": "scripted"}]
    one = (await api.get("/submissions/2")).body
    assert one["verdicts"][0]["evidence"] == {"reason": "agrees", "log_tail": "long"}
    assert one["comparisons"][0]["evidence"]["later"] == {"trial_s": [1.0]}


async def test_evidence_without_a_reason_is_empty_in_a_list(api: Client, subnet: Subnet) -> None:
    for miner, evidence in ((subnet.miner, {}), (subnet.rival, {"reason": 7})):
        await api.submit(miner, Code(str(miner.ss58_address)))
        lease = await api.lease(subnet.validator)
        assert lease is not None
        await api.judge(subnet.validator, lease, evidence=evidence)
    listed = (await api.get("/submissions")).body
    assert [one["verdicts"][0]["evidence"] for one in listed] == [{"reason": "7"}, {}]


def references(value: Any) -> set[str]:
    """Every $ref inside a JSON document."""
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*(references(item) for item in value.values()))
    if isinstance(value, list):
        return set().union(*(references(item) for item in value))
    return set()


async def test_description_is_complete(api: Client) -> None:
    document = (await api.get("/openapi.json")).body
    assert document["openapi"].startswith("3.1")
    operations = {
        (method, path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    for method, path in (
        ("post", "/submit_kernel"),
        ("post", "/commit_submission"),
        ("post", "/reveal_submission"),
        ("get", "/pending_reveals"),
        ("get", "/get_submission_stats"),
        ("get", "/get_current_round"),
        ("get", "/health"),
        ("get", "/submissions/{submission_id}"),
        ("post", "/evaluations/{submission_id}/verdict"),
    ):
        assert (method, path) in operations
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert reference.startswith("#/components/schemas/")
        assert reference.rsplit("/", 1)[1] in schemas
    submit = operations["post", "/submit_kernel"]
    assert submit["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/SubmitKernel")
    assert set(schemas["SubmitKernel"]["required"]) >= {"miner_hotkey", "fork_url", "tokens_per_sec"}
    assert {"200", "400", "401", "403", "409", "422", "429", "503"} <= set(submit["responses"])
    assert len({operation["operationId"] for operation in operations.values()}) == len(operations)
    for (_, path), operation in operations.items():
        if "{submission_id}" in path:
            assert any(p["in"] == "path" and p["required"] for p in operation["parameters"])
