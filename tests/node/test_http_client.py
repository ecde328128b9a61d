"""The HTTP client against real servers that fail, stall, redirect and flood."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from bittensor import sp_core
from hypothesis import given
from hypothesis import strategies as st

from node.http_answers import RawAnswer, check_base_url, detail_of, read_retry_after_s
from node.http_client import HttpClient, new_session
from protocol.auth import AuthenticatedCaller, verify_request
from protocol.errors import ApiRefused, ApiUnavailable, ConfigError
from protocol.messages import Answer, Message

ALICE = sp_core.Keypair.create_from_uri("//Alice")
BOB = sp_core.Keypair.create_from_uri("//Bob").ss58_address
Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Thing(Answer):
    """What the server answers."""

    name: str
    number: int = 0


class Ask(Message):
    """What the client sends."""

    name: str
    note: str | None = None


def reply(status: int = 200, body: object = None, **headers: str) -> Reply:
    async def answer(_request: web.Request) -> web.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body if body is not None else {"name": "ok"}, status=status, headers=named)

    return answer


async def stall(_request: web.Request) -> web.Response:
    await asyncio.sleep(60)
    raise AssertionError


async def cut(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class Service:
    """Answers with scripted replies in turn, the last one for ever; keeps what it was sent."""

    def __init__(self) -> None:
        self.script: deque[Reply] = deque([reply()])
        self.requests: list[tuple[str, str, bytes, dict[str, str]]] = []
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", self._answer)
        self.server = TestServer(app)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path, await request.read(), dict(request.headers)))
        answer = self.script.popleft() if len(self.script) > 1 else self.script[0]
        return await answer(request)

    def client(self, prefix: str = "", **options: object) -> HttpClient:
        base = str(self.server.make_url("/")).rstrip("/") + prefix
        options = {"timeout_s": 30.0, "attempts_deadline_s": 20.0} | options
        return HttpClient(new_session, base, **options)  # type: ignore[arg-type]


@pytest.fixture
async def service(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Service]:
    monkeypatch.setattr("node.http_client.BACKOFF_START_S", 0.001)
    service = Service()
    await service.server.start_server()
    yield service
    await service.server.close()


async def test_request_and_answer(service: Service) -> None:
    service.script = deque([reply(body={"name": "x", "number": 3, "added_later": 1})])
    async with service.client("/v1/") as client:
        params = {"limit": 5, "hotkey": "a b&c"}
        assert await client.request("GET", "/things", params=params, answer=Thing) == Thing(
            name="x", number=3
        )
        await client.request("POST", "/things", body=Ask(name="ü"))
    (get, post) = service.requests
    assert get[:3] == ("GET", "/v1/things?limit=5&hotkey=a+b%26c", b"")
    assert post[:3] == ("POST", "/v1/things", '{"name":"ü"}'.encode())
    assert post[3]["Content-Type"] == "application/json"
    assert "Content-Type" not in get[3]


async def test_lists_and_empty_answers(service: Service) -> None:
    async with service.client() as client:
        service.script = deque([reply(body=[{"name": "a"}, {"name": "b"}])])
        assert [thing.name for thing in await client.request("GET", "/", answer=list[Thing])] == ["a", "b"]
        service.script = deque([reply(204), reply()])
        assert await client.request_optional("POST", "/lease", answer=Thing) is None
        assert await client.request_optional("POST", "/lease", answer=Thing) == Thing(name="ok")


@pytest.mark.parametrize("failure", [reply(500), reply(502), reply(503), reply(429), cut], ids=str)
async def test_what_may_pass_is_tried_again(service: Service, failure: Reply) -> None:
    service.script = deque([failure, failure, reply()])
    async with service.client() as client:
        assert await client.request("POST", "/x", body=Ask(name="a"), answer=Thing) == Thing(name="ok")
    assert len(service.requests) == 3
    assert {request[2] for request in service.requests} == {b'{"name":"a"}'}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 415, 422, 425])
async def test_refusals_are_told_and_not_repeated(service: Service, status: int) -> None:
    service.script = deque([reply(status, {"detail": "field x = 5 is wrong"}, Retry_After="7")])
    async with service.client() as client:
        with pytest.raises(ApiRefused, match=r"^field x = 5 is wrong$") as caught:
            await client.request("POST", "/x", answer=Thing)
    assert (caught.value.status, caught.value.retry_after_s) == (status, 7.0)
    assert len(service.requests) == 1


async def test_retry_after_is_waited_for(service: Service) -> None:
    service.script = deque([reply(503, Retry_After="1"), reply()])
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with service.client() as client:
        await client.request("GET", "/")
    assert loop.time() - started >= 1.0


async def test_retry_after_beyond_the_deadline_is_not_waited_for(service: Service) -> None:
    async with service.client() as client:
        service.script = deque([reply(429, {"detail": "slow down"}, Retry_After="3600")])
        with pytest.raises(ApiRefused, match="slow down") as caught:
            await client.request("GET", "/")
        assert (caught.value.status, caught.value.retry_after_s) == (429, 3600.0)
        service.script = deque([reply(503, {"detail": "draining"}, Retry_After="3600")])
        with pytest.raises(
            ApiUnavailable, match=r"GET http://.*/x: answered 503: draining \(gave up after 20 s\)"
        ):
            await client.request("GET", "/x")
    assert len(service.requests) == 2


async def test_deadline_covers_the_whole_call(service: Service) -> None:
    service.script = deque([reply(500), stall])
    async with service.client(timeout_s=30.0, attempts_deadline_s=3.0) as client:
        with pytest.raises(ApiUnavailable, match="no answer within"):
            await asyncio.wait_for(client.request("GET", "/"), 20)
    assert len(service.requests) == 2


async def test_one_stalled_attempt_does_not_use_up_the_deadline(service: Service) -> None:
    service.script = deque([stall, reply()])
    async with service.client(timeout_s=0.2) as client:
        assert await client.request("GET", "/", answer=Thing) == Thing(name="ok")


async def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        async with HttpClient(new_session, f"http://127.0.0.1:{port}") as client:
            with pytest.raises(ApiUnavailable, match=r"ClientConnectorError.*check the address") as caught:
                await client.request("GET", "/health", is_retried=False)
    assert caught.value.exit_code == 69


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            reply(body={"number": 3}),
            r"GET http://.*/x answered 200 with something that is no Thing \(name: Field",
        ),
        (reply(body={"name": "a", "number": "many"}), r"no Thing \(number: "),
        (reply(204), r"answered 204 with something that is no Thing"),
        (reply(200, Content_Encoding="gzip"), "encoded as gzip, which was not asked for"),
    ],
)
async def test_answers_that_make_no_sense(service: Service, answer: Reply, sentence: str) -> None:
    service.script = deque([answer])
    async with service.client() as client:
        with pytest.raises(ApiUnavailable, match=sentence):
            await client.request("GET", "/x", answer=Thing)
    assert len(service.requests) == 1


async def test_answer_is_not_read_beyond_its_limit(service: Service) -> None:
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(b"x" * 65_536)
            sent += 65_536
        return response

    service.script = deque([flood])
    async with service.client(max_answer_bytes=100_000) as client:
        with pytest.raises(ApiUnavailable, match="answered more than the 100000 bytes"):
            await client.request("GET", "/x", answer=Thing)
    assert sent < 20_000_000


async def test_redirects_are_not_followed(service: Service) -> None:
    service.script = deque([reply(307, Location="http://169.254.169.254/")])
    async with service.client() as client:
        with pytest.raises(
            ApiRefused, match=r"redirected to http://169.254.169.254/: redirects are not followed"
        ):
            await client.request("GET", "/x")
    assert len(service.requests) == 1


async def test_each_attempt_is_signed_anew_for_the_receiver(service: Service) -> None:
    service.script = deque([reply(500), reply(500), reply()])

    async def receiver() -> str:
        return BOB

    async with service.client("/v1", signer=ALICE, receiver=receiver) as client:
        await client.request("POST", "/lease", body=Ask(name="ü"), params={"q": "a b"}, signed=True)
    callers = [
        verify_request(headers, body, method=method, path=path, self_hotkey=BOB)
        for method, path, body, headers in service.requests
    ]
    assert {caller.hotkey for caller in callers} == {ALICE.ss58_address}
    assert len({caller.nonce_ns for caller in callers}) == 3
    assert isinstance(callers[0], AuthenticatedCaller)
    async with service.client(signer=ALICE, receiver=lambda: BOB) as client:
        await client.request("GET", "/", signed=True)
        await client.request("GET", "/")
    method, path, body, headers = service.requests[-2]
    assert (
        verify_request(headers, body, method=method, path=path, self_hotkey=BOB).hotkey == ALICE.ss58_address
    )
    assert "X-Bittensor-Signature" not in service.requests[-1][3]


async def test_signing_without_a_hotkey_is_refused(service: Service) -> None:
    async with service.client() as client:
        with pytest.raises(ConfigError, match="POST /x must be signed"):
            await client.request("POST", "/x", signed=True)


async def test_client_can_be_used_again_after_close(service: Service) -> None:
    client = service.client()
    await client.request("GET", "/")
    await client.close()
    await client.close()
    await client.request("GET", "/")
    await client.close()
    with pytest.raises(ValueError, match="must start with /"):
        await client.request("GET", "x")


async def test_cancellation_passes_through(service: Service) -> None:
    service.script = deque([stall])
    async with service.client() as client:
        call = asyncio.create_task(client.request("GET", "/"))
        await asyncio.sleep(0.1)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize(
    "base", ["", "localhost:8000", "ftp://host", "http://", "http://user:hunter2@host", "http://h:x"]
)
def test_addresses_that_cannot_be_used(base: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_base_url(base)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 3 ", 3.0),
        ("-3", None),
        ("soon", None),
        ("9" * 5000, 999999999.0),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60.0),
        ("Thu, 01 Jan 2026 00:01:00 -0000", 60.0),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_header(header: str | None, seconds: float | None) -> None:
    assert read_retry_after_s(header, datetime(2026, 1, 1, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"detail": "x"}', "x"),
        (
            b'{"detail": [{"field": "a", "message": "b", "value": "c"}, {"field": "d", "message": "e"}]}',
            "a: b; d: e",
        ),
        (b"<html>\n\x1b[31mbad gateway", "<html>  [31mbad gateway"),
        (b"", "no reason given"),
        (b"[" * 100_000, "[" * 300),
    ],
)
def test_detail_is_one_printable_line(body: bytes, detail: str) -> None:
    assert detail_of(RawAnswer(500, {}, body)) == detail


@given(body=st.binary())
def test_any_error_body_gives_a_sentence(body: bytes) -> None:
    detail = detail_of(RawAnswer(500, {}, body))
    assert detail
    assert detail.isprintable()
