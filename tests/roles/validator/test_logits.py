"""Logit verification over real HTTP: an honest server passes, everything else does not."""

import asyncio
import base64
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer

from node.chain.interface import AxonAddress
from node.settings_model import Settings
from protocol.auth import sign_request
from protocol.errors import ConfigError, Unavailable, WorkerRefused
from protocol.logits import decode_logits, encode_logits
from protocol.messages import InferenceRequest
from protocol.rules import CHALLENGE_MAX_STEP, CHALLENGE_PROMPT_TOKENS
from protocol.signing import inference_text, sign_text
from protocol.verdicts import LogitOutcome
from roles.validator.logit_challenge import draw_challenge
from roles.validator.logit_client import check_address
from roles.validator.logits import LogitResult, LogitVerifier
from tests.roles.inference.harness import Running, key, local_settings, metagraph_of, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSED, FAILED, PENDING = LogitOutcome.PASSED, LogitOutcome.FAILED, LogitOutcome.PENDING
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Tamper = Callable[[dict[str, Any]], None]


async def permits() -> Any:
    """The subnet: `friend` is a validator that lends a cheater its signature."""
    return metagraph_of(validator=True, friend=True, miner=False, cheater=False)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def honest(tiny_model: Path) -> AsyncIterator[Running]:
    settings = local_settings(tiny_model, require_auth=True)
    async with running(settings, key("miner"), permits) as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def verifier(tiny_model: Path) -> AsyncIterator[LogitVerifier]:
    one = make_verifier(local_settings(tiny_model))
    await one.start()
    yield one
    await one.close()


@pytest.fixture(autouse=True)
def same_challenge(verifier: LogitVerifier) -> None:
    """Each test draws the same challenge, whichever ran before it."""
    verifier._source.seed(5)


def make_verifier(settings: Settings, **options: Any) -> LogitVerifier:
    return LogitVerifier(settings, key("validator"), source=random.Random(5), **options)


def axon_of(port: int) -> AxonAddress:
    return AxonAddress("127.0.0.1", port)


def hotkey(name: str) -> Any:
    return key(name).ss58_address


async def check(verifier: LogitVerifier, one: Running, name: str = "miner") -> LogitResult:
    return await verifier.check(hotkey(name), axon_of(one.server.port))


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[AxonAddress]:
    """A miner's server that does whatever the test wants."""
    app = web.Application()
    app.router.add_post("/inference", handler)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    try:
        assert server.port is not None
        yield axon_of(server.port)
    finally:
        await server.close()


def forwarding(honest: Running, tamper: Tamper, *, signs: bool = True) -> Handler:
    """Ask the honest server, change its answer, sign the result as the cheater."""

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {"Content-Type": "application/json"} | sign_request(
            key("friend"), method="POST", path="/inference", body=body, receiver=hotkey("miner")
        )
        reply = await honest.post(body, headers=headers)
        assert reply.status == 200, reply
        answer = dict(reply.body)
        tamper(answer)
        if signs:
            sign(answer)
        return web.json_response(answer)

    return handle


def sign(answer: dict[str, Any]) -> None:
    captured = answer["captured_logits"]
    try:
        raw = decode_logits(captured, 512).astype("<f4").tobytes()
    except Exception:  # noqa: BLE001 - whatever was made of them, something is signed
        raw = b""
    text = inference_text(
        nonce=answer["nonce"] or "",
        tokens=answer["tokens"],
        captured_logits_sha256=hashlib.sha256(raw).hexdigest(),
    )
    answer["signature"] = sign_text(key("cheater"), text)


async def test_honest_miner_passes_again_and_again(honest: Running, verifier: LogitVerifier) -> None:
    results = [await check(verifier, honest) for _ in range(6)]
    for result in results:
        assert result.outcome is PASSED, result
        assert result.cosine_similarity is not None
        assert result.cosine_similarity > 0.999999
        assert result.max_abs_diff is not None
        assert result.max_abs_diff < 1e-3
        assert result.tokens_per_sec is not None
        assert result.tokens_per_sec > 0
        assert result.step is not None
        assert 1 <= result.step <= CHALLENGE_MAX_STEP
    assert len({result.step for result in results}) > 1


async def test_answer_passed_on_unchanged_and_signed_again_passes(
    honest: Running, verifier: LogitVerifier
) -> None:
    """What the refusals below differ from: the road itself is open."""
    async with serving(forwarding(honest, lambda answer: None)) as axon:
        result = await verifier.check(hotkey("cheater"), axon)
    assert result.outcome is PASSED, result


async def test_other_weights_fail(other_model: Path, verifier: LogitVerifier) -> None:
    async with running(local_settings(other_model), key("miner")) as other:
        result = await check(verifier, other)
    assert result.outcome is FAILED
    assert result.reason.startswith(f"logits at step {result.step} are not the reference's: cosine")
    assert result.max_abs_diff is not None
    assert result.max_abs_diff > 0.1
    assert result.cosine_similarity is not None
    assert result.cosine_similarity < 0.99


def last_token(answer: dict[str, Any]) -> None:
    answer["tokens"][-1] = (answer["tokens"][-1] + 7) % 512


def other_tokens(answer: dict[str, Any]) -> None:
    answer["tokens"] = [(token + 1) % 512 for token in answer["tokens"]]


def shorten(answer: dict[str, Any]) -> None:
    answer["tokens"].pop()


def lengthen(answer: dict[str, Any]) -> None:
    answer["tokens"].append(0)


def leave_vocabulary(answer: dict[str, Any]) -> None:
    answer["tokens"][0] = 512


def change_logits(answer: dict[str, Any]) -> None:
    values = decode_logits(answer["captured_logits"], 512)
    values[3] += 0.25
    answer["captured_logits"] = encode_logits(values)


def poison_logits(answer: dict[str, Any]) -> None:
    answer["captured_logits"] = encode_logits(np.full(512, np.nan, dtype=np.float32))


def drop_logits(answer: dict[str, Any]) -> None:
    answer["captured_logits"] = None


def cut_logits(answer: dict[str, Any]) -> None:
    answer["captured_logits"] = base64.b64encode(b"1234").decode()


def spoil_logits(answer: dict[str, Any]) -> None:
    answer["captured_logits"] = "%%%"


def change_nonce(answer: dict[str, Any]) -> None:
    answer["nonce"] = "0" * 32


def drop_nonce(answer: dict[str, Any]) -> None:
    answer["nonce"] = None


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (last_token, "is not the reference's choice: its logit is"),
        (other_tokens, "are not the reference's"),
        (shorten, "tokens came where"),
        (lengthen, "tokens came where"),
        (leave_vocabulary, "token 512 is outside the vocabulary 0..511"),
        (change_logits, "largest difference 0.2"),
        (poison_logits, "cosine similarity nan"),
        (drop_logits, "no logits came"),
        (cut_logits, "captured_logits are 4 bytes"),
        (spoil_logits, "captured_logits are not base64"),
        (change_nonce, "another nonce"),
        (drop_nonce, "another nonce"),
    ],
)
async def test_tampered_answers_fail(
    honest: Running, verifier: LogitVerifier, tamper: Tamper, sentence: str
) -> None:
    async with serving(forwarding(honest, tamper)) as axon:
        result = await verifier.check(hotkey("cheater"), axon)
    assert result.outcome is FAILED
    assert sentence in result.reason


async def test_tokens_alone_do_not_pass(honest: Running, verifier: LogitVerifier) -> None:
    """Logits of step 1 depend on the prompt only: the tokens must be checked by themselves."""

    def only_later_tokens(answer: dict[str, Any]) -> None:
        answer["tokens"][-3:] = [5, 5, 5]

    async with serving(forwarding(honest, only_later_tokens)) as axon:
        result = await verifier.check(hotkey("cheater"), axon)
    assert result.outcome is FAILED
    assert result.reason.startswith("token ") or "are not the reference's" in result.reason


async def test_copied_signature_fails(honest: Running, verifier: LogitVerifier) -> None:
    async with serving(forwarding(honest, lambda answer: None, signs=False)) as axon:
        result = await verifier.check(hotkey("cheater"), axon)
    assert result.outcome is FAILED
    assert f"signature is not the one of hotkey {hotkey('cheater')}" in result.reason


async def test_missing_signature_fails(honest: Running, verifier: LogitVerifier) -> None:
    def strip(answer: dict[str, Any]) -> None:
        answer["signature"] = None

    async with serving(forwarding(honest, strip, signs=False)) as axon:
        result = await verifier.check(hotkey("cheater"), axon)
    assert (result.outcome, result.reason) == (FAILED, "the answer is not signed by the miner's hotkey")


async def test_pointing_the_axon_at_a_rivals_server_does_not_pass(
    honest: Running, verifier: LogitVerifier
) -> None:
    """The rival's server refuses requests that are signed for another hotkey."""
    result = await check(verifier, honest, "cheater")
    assert result.outcome is PENDING
    assert "answered 401" in result.reason


async def test_answer_to_an_earlier_challenge_fails(honest: Running, verifier: LogitVerifier) -> None:
    kept: list[dict[str, Any]] = []
    forward = forwarding(honest, kept.append)

    async def replay(request: web.Request) -> web.StreamResponse:
        return await forward(request) if not kept else web.json_response(kept[0])

    async with serving(replay) as axon:
        assert (await verifier.check(hotkey("cheater"), axon)).outcome is PASSED
        assert (await verifier.check(hotkey("cheater"), axon)).outcome is FAILED


async def test_throughput_is_by_our_clock(honest: Running, verifier: LogitVerifier) -> None:
    def boast(answer: dict[str, Any]) -> None:
        answer["elapsed_sec"] = 1e-9

    async with serving(forwarding(honest, boast)) as axon:
        result = await verifier.check(hotkey("cheater"), axon)
    assert result.outcome is PASSED
    assert result.tokens_per_sec is not None
    assert result.tokens_per_sec < 100_000


async def test_list_of_floats_is_taken_too(honest: Running, verifier: LogitVerifier) -> None:
    def as_list(answer: dict[str, Any]) -> None:
        answer["captured_logits"] = decode_logits(answer["captured_logits"], 512).tolist()

    async with serving(forwarding(honest, as_list)) as axon:
        assert (await verifier.check(hotkey("cheater"), axon)).outcome is PASSED


async def test_redirect_is_not_followed(verifier: LogitVerifier) -> None:
    called: list[str] = []

    async def target(request: web.Request) -> web.StreamResponse:
        called.append(request.path)
        return web.json_response({})

    async with serving(target) as elsewhere:

        async def redirect(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(f"http://{elsewhere}/inference")

        async with serving(redirect) as axon:
            result = await verifier.check(hotkey("miner"), axon)
    assert (result.outcome, result.reason) == (PENDING, "answered 307: redirects are not followed")
    assert called == []


@pytest.mark.parametrize("way", ["silent", "dripping"])
async def test_slow_server_is_pending(
    verifier: LogitVerifier, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(verifier, "_timeout_s", 0.5)

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if way == "silent":
            await asyncio.sleep(30)
        await response.prepare(request)
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)

    async with serving(slow) as axon:
        result = await verifier.check(hotkey("miner"), axon)
    assert (result.outcome, result.reason) == (PENDING, "no answer within 0.5 s")
    assert result.tokens_per_sec is None


async def test_refusal_of_the_server_is_pending_with_its_sentence(verifier: LogitVerifier) -> None:
    async def busy(request: web.Request) -> web.StreamResponse:
        return web.json_response({"detail": "the model is being loaded"}, status=503)

    async with serving(busy) as axon:
        result = await verifier.check(hotkey("miner"), axon)
    assert (result.outcome, result.reason) == (PENDING, "answered 503: the model is being loaded")


@pytest.mark.parametrize(
    ("body", "headers", "sentence"),
    [
        (b"hello", {}, "does not follow the protocol"),
        (b'{"tokens": "many"}', {}, "does not follow the protocol (tokens"),
        (b"[" * 50_000, {}, "does not follow the protocol"),
        (b" " * 1_000_000, {}, "larger than the"),
        (b"zip", {"Content-Encoding": "gzip"}, "encoded as 'gzip', which was not asked for"),
    ],
)
async def test_garbage_fails(
    verifier: LogitVerifier, body: bytes, headers: dict[str, str], sentence: str
) -> None:
    async def garbage(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, headers=headers)

    async with serving(garbage) as axon:
        result = await verifier.check(hotkey("miner"), axon)
    assert result.outcome is FAILED
    assert sentence in result.reason


async def test_nobody_there_is_pending(verifier: LogitVerifier) -> None:
    async def gone(_request: web.Request) -> web.StreamResponse:
        return web.Response()

    async with serving(gone) as axon:
        pass
    result = await verifier.check(hotkey("miner"), axon)
    assert result.outcome is PENDING
    assert result.reason.startswith("not reachable: ")
    nothing = await verifier.check(hotkey("miner"), None)
    assert nothing.outcome is PENDING
    assert "no axon" in nothing.reason


async def test_request_carries_the_challenge(verifier: LogitVerifier) -> None:
    requests: list[InferenceRequest] = []

    async def record(request: web.Request) -> web.StreamResponse:
        requests.append(InferenceRequest.model_validate_json(await request.read()))
        return web.Response(status=500)

    async with serving(record) as axon:
        await asyncio.gather(*(verifier.check(hotkey("miner"), axon) for _ in range(4)))
    assert len({tuple(one.prompt) for one in requests}) == 4
    assert len({one.nonce for one in requests}) == 4
    for one in requests:
        assert len(one.prompt) == CHALLENGE_PROMPT_TOKENS
        assert one.logits_encoding == "base64"
        assert one.logits_at_step is not None
        assert 1 <= one.logits_at_step <= one.gen_len


async def test_reference_that_died_is_replaced(honest: Running, verifier: LogitVerifier) -> None:
    await verifier._worker.kill()
    assert (await check(verifier, honest)).outcome is PASSED


async def test_broken_reference_says_nothing_about_the_miner(tmp_path: Path, honest: Running) -> None:
    with pytest.raises(ConfigError, match="is no folder with a config"):
        make_verifier(local_settings(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    broken = make_verifier(local_settings(tmp_path))
    try:
        with pytest.raises(WorkerRefused, match="cannot be loaded"):
            await check(broken, honest)
    finally:
        await broken.close()


async def test_challenges_stay_within_their_bounds() -> None:
    ordinary = [*range(5, 200), 300]
    drawn = [draw_challenge(ordinary, random.Random(seed)) for seed in range(200)]
    for one in drawn:
        assert set(one.prompt) <= set(ordinary)
        assert len(one.prompt) == 128
        assert 1 <= one.step <= min(50, one.gen_len)
        assert 16 <= one.gen_len <= 64
        assert len(one.nonce) == 32
    assert {one.step for one in drawn} >= {1, 50}
    assert len({one.nonce for one in drawn}) == 200


@pytest.mark.parametrize(
    "ip",
    [
        *("127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
        *("::", "::1", "fe80::1", "fc00::1", "ff02::1", "ff0e::1", "2001:db8::1", "fec0::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::a00:1"),
        *("2002:7f00:1::1", "2001:0:7f00:1::", "localhost", "example.com", "8.8.8.8.nip.io", "0x7f000001"),
        *("2130706433", "127.1", "", "8.8.8.8 ", "[::1]"),
    ],
)
async def test_only_global_unicast_is_called(ip: str) -> None:
    with pytest.raises(Unavailable, match=r"not a global unicast address|not an IP address"):
        check_address(AxonAddress(ip, 8001), allow_loopback=False)


async def test_allowed_addresses() -> None:
    assert str(check_address(AxonAddress("8.8.8.8", 8001), allow_loopback=False)) == (
        "http://8.8.8.8:8001/inference"
    )
    assert str(check_address(AxonAddress("2606:4700::1111", 80), allow_loopback=False)) == (
        "http://[2606:4700::1111]/inference"
    )
    assert check_address(AxonAddress("::ffff:8.8.8.8", 1), allow_loopback=False).host == "8.8.8.8"
    assert check_address(AxonAddress("127.0.0.1", 1), allow_loopback=True).port == 1
    assert check_address(AxonAddress("::1", 1), allow_loopback=True).host == "::1"
    with pytest.raises(Unavailable, match=r"10\.0\.0\.1 is not a global"):
        check_address(AxonAddress("10.0.0.1", 1), allow_loopback=True)
    with pytest.raises(Unavailable, match="is this validator's own"):
        check_address(AxonAddress("8.8.8.8", 1), allow_loopback=False, own_ips={"8.8.8.8"})
    for port in (0, 65_536, -1):
        with pytest.raises(Unavailable, match=f"axon port {port} is outside"):
            check_address(AxonAddress("8.8.8.8", port), allow_loopback=False)


async def test_wrong_network_never_sees_a_request(tiny_model: Path, verifier: LogitVerifier) -> None:
    called: list[str] = []

    async def note(request: web.Request) -> web.StreamResponse:
        called.append(request.path)
        return web.json_response({})

    monkey = pytest.MonkeyPatch()
    monkey.setattr(verifier, "_allow_loopback", False)
    try:
        async with serving(note) as axon:
            result = await verifier.check(hotkey("miner"), axon)
    finally:
        monkey.undo()
    assert result.outcome is PENDING
    assert "127.0.0.1 is not a global unicast address" in result.reason
    assert called == []


async def test_the_reference_takes_its_turn_on_the_device(
    honest: Running, verifier: LogitVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes of a GPU would count as a submission's that is measured there."""
    turns: list[str] = []

    @asynccontextmanager
    async def turn(device: str, *_arguments: Any, **_options: Any) -> AsyncIterator[None]:
        turns.append(device)
        yield
        turns.append("over")

    monkeypatch.setattr("roles.validator.logits.urgent_turn", turn)
    assert (await check(verifier, honest)).outcome is PASSED
    assert turns == ["cpu", "over"]
