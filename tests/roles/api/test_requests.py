"""Bad requests to every writing endpoint: the right status, a sentence, and nothing half-written."""

import json
from typing import Any
from unittest.mock import patch

import pytest

from node.settings_model import Settings
from protocol.signing import sign_text, submit_text
from protocol.verdicts import LogitOutcome
from tests.roles.api.harness import (
    TARGET,
    Client,
    Code,
    Key,
    Subnet,
    commit_message,
    logit_message,
    reveal_message,
    running,
    submit_message,
    until,
    verdict_message,
    with_api,
)

READS = (
    "/",
    "/health",
    "/info",
    "/leaderboard",
    "/livez",
    "/pending_reveals",
    "/submissions",
    "/verifications",
    "/get_current_round",
    "/get_submission_stats",
)


async def bodies(api: Client, subnet: Subnet) -> dict[str, tuple[dict[str, Any], Key | None]]:
    """A body for every writing endpoint that would be taken as it stands, and who signs the request."""
    committed = await api.commit(subnet.miner, Code("committed"))
    subnet.chain.advance(100)
    # The API sees a new block after a moment: what tests compare before and after must not change by that.
    await until(lambda: can_reveal(api))
    await api.submit(subnet.rival, Code("leased"))
    lease = await api.lease(subnet.validator)
    assert lease is not None
    number = lease.submission_id
    messages: dict[str, tuple[Any, Key | None]] = {
        "/commit_submission": (commit_message(subnet.miner, "ab" * 32), None),
        "/reveal_submission": (
            reveal_message(subnet.miner, committed.submission_id, Code("committed")),
            None,
        ),
        "/submit_kernel": (submit_message(subnet.sibling, Code("direct")), None),
        f"/evaluations/{number}/verdict": (verdict_message(subnet.validator, lease), subnet.validator),
        "/record_verification": (
            logit_message(subnet.validator, subnet.miner, LogitOutcome.PASSED),
            subnet.validator,
        ),
    }
    found = {path: (message.model_dump(mode="json"), caller) for path, (message, caller) in messages.items()}
    found[f"/evaluations/{number}/heartbeat"] = ({"lease_id": lease.lease_id}, subnet.validator)
    return found


async def snapshot(api: Client) -> Any:
    """What the public sees, without the passing of time."""
    paths = ("/submissions", "/leaderboard", "/verifications", "/pending_reveals")
    bodies = [(await api.get(path)).body for path in paths]
    for body in bodies:
        if isinstance(body, dict):
            body.pop("current_block", None)
    return bodies


async def test_bodies_that_are_not_json(api: Client, subnet: Subnet) -> None:
    found = await bodies(api, subnet)
    before = await snapshot(api)
    for path, (body, caller) in found.items():
        for data in (b"", b"{", b"\xff\xfe", json.dumps(body).encode()[:-1], b'{"a": nan}'):
            reply = await api.post(path, data, caller)
            assert reply.status == 400, (path, data)
            assert "JSON" in reply.detail
        for data in (b"[]", b"null", b"1", b'"text"', b"{}", b"[" * 50 + b"]" * 50):
            reply = await api.post(path, data, caller)
            assert reply.status == 422, (path, data)
            assert {"field", "message", "value"} == set(reply.detail[0])
    assert await snapshot(api) == before


async def test_other_content_types(api: Client, subnet: Subnet) -> None:
    for path, (body, caller) in (await bodies(api, subnet)).items():
        data = json.dumps(body).encode()
        for content_type in ("text/plain", "application/x-www-form-urlencoded"):
            headers = {"Content-Type": content_type}
            if caller is not None:
                headers |= api.signature(caller, "POST", path, data)
            reply = await api.send("POST", path, data, headers)
            assert reply.status == 415, path
            assert content_type in reply.detail


async def test_bodies_that_are_too_large(api: Client, subnet: Subnet) -> None:
    for path, (body, caller) in (await bodies(api, subnet)).items():
        data = json.dumps(body).encode() + b" " * 70_000
        reply = await api.post(path, data, caller)
        assert reply.status == 413, path
        assert "65536" in reply.detail


async def test_every_field_that_is_missing_unknown_or_of_another_type(api: Client, subnet: Subnet) -> None:
    found = await bodies(api, subnet)
    before = await snapshot(api)
    for path, (body, caller) in found.items():
        wrong = [({**body, "surprise": 1}, "surprise")]
        for name, value in body.items():
            if value is not None and value != "":
                wrong.append(({**body, name: [["neither", "text", "nor", "number"]]}, name))
        for changed, field in wrong:
            reply = await api.post(path, json.dumps(changed).encode(), caller)
            assert reply.status == 422, (path, field, reply)
            assert any(problem["field"].startswith(field) for problem in reply.detail), (path, field, reply)
    assert await snapshot(api) == before


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "0", "-1.5"])
async def test_claims_that_are_no_throughput(api: Client, subnet: Subnet, literal: str) -> None:
    found = await bodies(api, subnet)
    for path in ("/reveal_submission", "/submit_kernel"):
        body, _ = found[path]
        sent = json.dumps({**body, "tokens_per_sec": 12345.0}).replace("12345.0", literal).encode()
        reply = await api.post(path, sent)
        assert reply.status == 422
        [problem] = reply.detail
        assert problem["field"] == "tokens_per_sec"
        assert problem["value"]
    verdict = next(path for path in found if path.endswith("/verdict"))
    body, caller = found[verdict]
    sent = json.dumps({**body, "measured_tokens_per_sec": 12345.0}).replace("12345.0", literal).encode()
    reply = await api.post(verdict, sent, caller)
    assert reply.status == 422
    assert reply.detail[0]["field"] == "measured_tokens_per_sec"


@pytest.mark.parametrize("target", [0, -1, 1_048_577, 10**30, 1.5, "1000", True, None])
async def test_target_lengths_that_are_not_allowed(api: Client, subnet: Subnet, target: Any) -> None:
    for path in ("/commit_submission", "/submit_kernel"):
        body, _ = (await bodies_without_queue(subnet))[path]
        reply = await api.post(path, json.dumps({**body, "target_sequence_length": target}).encode())
        assert reply.status == 422
        assert reply.detail[0]["field"] == "target_sequence_length"


async def bodies_without_queue(subnet: Subnet) -> dict[str, tuple[dict[str, Any], None]]:
    """Bodies for which nothing has to be recorded first."""
    return {
        "/commit_submission": (commit_message(subnet.miner, "ab" * 32).model_dump(mode="json"), None),
        "/submit_kernel": (submit_message(subnet.miner, Code()).model_dump(mode="json"), None),
    }


@pytest.mark.parametrize(
    "url",
    [
        "http://github.com/owner/fork",
        "https://evil.example/owner/fork",
        "https://github.com/owner",
        "https://token@github.com/owner/fork",
        "https://github.com/owner/fork?x=1",
        "https://github.com/owner/../fork",
        "ssh://git@github.com/owner/fork",
        "--upload-pack=evil",
        "file://host/path",
    ],
)
async def test_fork_urls_that_are_not_allowed(api: Client, subnet: Subnet, url: str) -> None:
    message = submit_message(subnet.miner, Code()).model_copy(update={"fork_url": url})
    resigned = message.model_copy(update={"signature": sign_text(subnet.miner, submit_text(message))})
    reply = await api.post("/submit_kernel", resigned)
    assert reply.status == 422
    assert "fork_url" in str(reply.detail)
    assert (await api.get("/submissions")).body == []


@pytest.mark.parametrize("commit_hash", ["main", "a" * 39, "a" * 41, "A" * 40, "g" * 40])
async def test_commit_hashes_that_are_not_full(api: Client, subnet: Subnet, commit_hash: str) -> None:
    body = submit_message(subnet.miner, Code()).model_dump(mode="json")
    reply = await api.post("/submit_kernel", json.dumps({**body, "commit_hash": commit_hash}).encode())
    assert reply.status == 422
    assert reply.detail[0]["field"] == "commit_hash"
    assert reply.detail[0]["value"] == commit_hash


@pytest.mark.parametrize("limit", ["0", "-1", "501", "many", "", "1.5", "99999999999999", "٣"])
async def test_limits_that_make_no_sense(api: Client, limit: str) -> None:
    for path in ("/get_submission_stats", "/submissions"):
        reply = await api.get(f"{path}?limit={limit}")
        assert reply.status == 422
        assert reply.detail[0]["field"] == "limit"


async def test_paths_and_methods_that_do_not_exist(api: Client) -> None:
    assert (await api.get("/nowhere")).status == 404
    assert (await api.get("/submissions/abc")).status == 404
    reply = await api.get("/submit_kernel")
    assert reply.status == 405
    assert "POST" in reply.detail


async def test_optional_fields_are_kept(api: Client, subnet: Subnet) -> None:
    body = submit_message(subnet.miner, Code()).model_dump(mode="json")
    body |= {
        "repo_hash": "cafe",
        "vram_mb": 512.5,
        "benchmarks": {"4096": {"tokens_per_sec": 9.0, "vram_mb": 1.0}},
    }
    assert (await api.post("/submit_kernel", json.dumps(body).encode())).status == 200
    body["benchmarks"] = {"x": {"tokens_per_sec": 9.0}}
    assert (await api.post("/submit_kernel", json.dumps(body).encode())).status == 422


async def test_writes_are_limited_per_hotkey_but_reveals_are_not(settings: Settings, subnet: Subnet) -> None:
    async with running(with_api(settings, writes_per_minute_per_hotkey=3)) as api:
        committed = await api.commit(subnet.miner, Code())
        for _ in range(2):
            await api.commit(subnet.miner, Code())
        refused = await api.post(
            "/commit_submission", commit_message(subnet.miner, Code().bound_hash(subnet.miner))
        )
        assert refused.status == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert subnet.miner.ss58_address in refused.detail
        await api.commit(subnet.rival, Code())
        for _ in range(6):
            early = await api.post(
                "/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code())
            )
            assert early.status == 425
        subnet.chain.advance(100)
        reply = await api.post(
            "/reveal_submission", reveal_message(subnet.miner, committed.submission_id, Code())
        )
        assert reply.status == 200


async def test_writes_are_limited_per_address(settings: Settings, subnet: Subnet) -> None:
    async with running(with_api(settings, writes_per_minute_per_ip=2)) as api:
        await api.commit(subnet.miner, Code())
        await api.commit(subnet.rival, Code())
        # The header of a caller that is no trusted proxy changes nothing.
        data = commit_message(subnet.sibling, Code().bound_hash(subnet.sibling)).model_dump_json().encode()
        headers = {"Content-Type": "application/json", "X-Forwarded-For": "203.0.113.9"}
        refused = await api.send("POST", "/commit_submission", data, headers)
        assert refused.status == 429
        assert "127.0.0.1" in refused.detail
    async with running(
        with_api(settings, writes_per_minute_per_ip=2, trusted_proxies=("127.0.0.0/8",))
    ) as api:
        for number in range(6):
            headers["X-Forwarded-For"] = f"198.51.100.1, 203.0.113.{number}"
            assert (await api.send("POST", "/commit_submission", data, headers)).status == 200


async def test_chain_that_is_away(api: Client, subnet: Subnet) -> None:
    await api.submit(subnet.miner, Code())
    committed = await api.commit(subnet.rival, Code())
    subnet.chain.advance(100)
    await until(lambda: can_reveal(api))
    hidden = subnet.path.with_suffix(".away")
    subnet.path.rename(hidden)
    try:
        # Readers wait as briefly as in production.
        with patch("roles.api.chain_view.READ_PATIENCE_S", 0.5):
            reply = await api.post("/commit_submission", commit_message(subnet.miner, "cd" * 32))
            assert reply.status == 503
            assert int(reply.headers["Retry-After"]) > 0
            for path in READS:
                assert (await api.get(path)).status == 200, path
            # What was due at the last block seen is due now: a reveal does not wait for the chain.
            message = reveal_message(subnet.rival, committed.submission_id, Code())
            assert (await api.post("/reveal_submission", message)).status == 200
    finally:
        hidden.rename(subnet.path)

    async def is_back() -> bool:
        return (await api.post("/commit_submission", commit_message(subnet.miner, "cd" * 32))).status == 200

    await until(is_back)


async def can_reveal(api: Client) -> bool:
    """True when the API has seen the block from which its only commitment can be revealed."""
    [pending] = (await api.get("/pending_reveals")).body["pending_reveals"]
    return bool(pending["can_reveal"])


async def test_target_in_the_answer(api: Client, subnet: Subnet) -> None:
    answer = await api.submit(subnet.miner, Code())
    assert answer.target_sequence_length == TARGET


async def test_text_that_no_database_takes(api: Client, subnet: Subnet) -> None:
    body = submit_message(subnet.miner, Code()).model_dump(mode="json")
    for text in (r"\ud800", r"\udfff", "\\u0000"):
        sent = json.dumps({**body, "repo_hash": "X"}).replace('"X"', f'"{text}"').encode()
        reply = await api.post("/submit_kernel", sent)
        assert reply.status in (200, 400, 422), (text, reply)
    for query in ("%00", "%FF", "%ED%A0%80", "x" * 4000, "'; DROP TABLE submissions; --"):
        reply = await api.get(f"/submissions?hotkey={query}")
        assert reply.status == 200
        assert reply.body == []
