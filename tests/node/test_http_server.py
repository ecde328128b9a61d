"""The HTTP server over real sockets: errors as JSON, limits, disconnects, drain."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Annotated

import aiohttp
import pytest
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field
from structlog.testing import capture_logs

from node.http_server import STATE, ApiProblem, HttpServer, base_app, json_body
from node.metrics import Metrics
from protocol.errors import (
    ApiUnavailable,
    ConfigError,
    DeviceBusy,
    InvalidForkUrl,
    NotPermitted,
    PortInUse,
    QuasarError,
    SignatureInvalid,
)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: Annotated[str, Field(max_length=5)]
    number: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    inner: list[int] = []


class Site:
    """A server with a few routes, and its client."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.reason: str | None = None
        self.error: Exception = ValueError("secret detail")
        self.release = asyncio.Event()
        self.entered = asyncio.Event()
        self.app = base_app(readiness=self.readiness, metrics=self.metrics, max_body_bytes=2000)
        self.app.router.add_post("/body", self.body)
        self.app.router.add_get("/slow", self.slow)
        self.app.router.add_get("/fail/{kind}", self.fail)
        self.app.router.add_get("/redirect", self.redirect)
        self.server = HttpServer(self.app, "127.0.0.1", 0, name="site", drain_s=10)
        self.session = aiohttp.ClientSession()

    async def readiness(self) -> str | None:
        if self.reason == "hang":
            await asyncio.sleep(60)
        return self.reason

    async def body(self, request: web.Request) -> web.Response:
        body = await json_body(request, Body)
        return web.json_response(body.model_dump())

    async def slow(self, _request: web.Request) -> web.Response:
        self.entered.set()
        await self.release.wait()
        return web.json_response({"done": True})

    async def fail(self, _request: web.Request) -> web.Response:
        raise self.error

    async def redirect(self, _request: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere")

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.port}{path}"

    async def ask(
        self, method: str, path: str, **options: object
    ) -> tuple[int, object, aiohttp.ClientResponse]:
        async with self.session.request(method, self.url(path), allow_redirects=False, **options) as response:  # type: ignore[arg-type]
            text = await response.text()
            is_json = response.content_type == "application/json"
            return response.status, json.loads(text) if is_json else text, response

    async def raw(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        writer.write(data)
        await writer.drain()
        answer = await asyncio.wait_for(reader.read(), 20)
        writer.close()
        await writer.wait_closed()
        return answer


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.server.start()
    yield site
    site.release.set()
    await site.session.close()
    await site.server.close()


async def test_health_and_readiness(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await site.ask("GET", "/livez"))[:2] == (200, {"status": "ok"})
    assert (await site.ask("GET", "/readyz"))[:2] == (200, {"status": "ready"})
    site.reason = "the chain has been silent for 80 s"
    assert (await site.ask("GET", "/readyz"))[:2] == (503, {"detail": site.reason})
    site.reason = "hang"
    monkeypatch.setattr("node.http_server.READINESS_TIMEOUT_S", 0.05)
    assert (await site.ask("GET", "/readyz"))[:2] == (
        503,
        {"detail": "the readiness check took longer than 0.05 s"},
    )
    assert (await site.ask("GET", "/livez"))[0] == 200


async def test_metrics_count_patterns_and_not_paths(site: Site) -> None:
    for name in ("a", "b", "c"):
        site.error = ApiProblem(418, "teapot")
        await site.ask("GET", f"/fail/{name}")
        await site.ask("GET", f"/nowhere/{name}")
    await site.ask("PATCH", "/livez")
    _, text, response = await site.ask("GET", "/metrics")
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert isinstance(text, str)
    assert 'quasar_http_requests_total{method="GET",route="/fail/{kind}",status="418"} 3.0' in text
    assert 'quasar_http_requests_total{method="GET",route="none",status="404"} 3.0' in text
    assert 'method="other",route="none",status="405"' in text
    assert "nowhere" not in text


async def test_unknown_path_and_method_are_json(site: Site) -> None:
    assert (await site.ask("GET", "/nothing"))[:2] == (404, {"detail": "there is no /nothing here"})
    status, answer, response = await site.ask("DELETE", "/body")
    assert (status, answer) == (405, {"detail": "/body does not take DELETE: use POST"})
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (ApiProblem(425, "too early: 5 blocks left", {"Retry-After": "60"}), 425, {"Retry-After": "60"}),
        (SignatureInvalid("signature does not fit"), 401, {}),
        (InvalidForkUrl("fork_url is not allowed"), 422, {}),
        (NotPermitted("not registered"), 403, {}),
        (ApiUnavailable("the chain is away"), 503, {"Retry-After": "5"}),
        (DeviceBusy("the GPU is taken"), 503, {"Retry-After": "5"}),
        (web.HTTPUnauthorized(reason="who are you"), 401, {}),
    ],
)
async def test_errors_of_handlers(site: Site, error: Exception, status: int, headers: dict[str, str]) -> None:
    site.error = error
    seen, answer, response = await site.ask("GET", "/fail/x")
    detail = error.reason if isinstance(error, web.HTTPException) else str(error)
    expected = (
        {"detail": detail} if not isinstance(error, web.HTTPException) else {"detail": "401: who are you"}
    )
    assert (seen, answer) == (status, expected)
    assert response.headers.items() >= headers.items()


@pytest.mark.parametrize(
    "error", [ValueError("secret detail"), QuasarError("secret detail"), ConfigError("secret detail")]
)
async def test_bug_is_logged_with_its_cause_and_not_shown(site: Site, error: Exception) -> None:
    site.error = error
    with capture_logs() as lines:
        status, answer, _ = await site.ask("GET", "/fail/x")
    assert (status, answer) == (500, {"detail": "internal error"})
    (line,) = lines
    assert line["exc_info"] is error
    assert (line["method"], line["path"]) == ("GET", "/fail/x")


async def test_redirects_pass(site: Site) -> None:
    status, _, response = await site.ask("GET", "/redirect")
    assert (status, response.headers["Location"]) == (302, "/elsewhere")


async def test_good_body(site: Site) -> None:
    status, answer, _ = await site.ask("POST", "/body", json={"name": "a", "number": 1})
    assert (status, answer) == (200, {"name": "a", "number": 1.0, "inner": []})


@pytest.mark.parametrize(
    ("data", "content_type", "status", "detail"),
    [
        (b"{", "application/json", 400, "the body is not JSON: "),
        (b"", "application/json", 400, "the body is not JSON: "),
        (b"\xff\xfe", "application/json", 400, "the body is not JSON: "),
        (b"[" * 1500, "application/json", 400, "the body is not JSON: "),
        (b'{"name": "\\ud800", "number": 1}', "application/json", 400, "the body is not JSON: "),
        (
            b"name=a",
            "application/x-www-form-urlencoded",
            415,
            "Content-Type must be application/json, not app",
        ),
        (b"{}", "text/plain", 415, "Content-Type must be application/json, not text/plain"),
        (
            b'"' + b"x" * 3000 + b'"',
            "application/json",
            413,
            "the body is larger than the 2000 bytes allowed",
        ),
    ],
)
async def test_bad_bodies(site: Site, data: bytes, content_type: str, status: int, detail: str) -> None:
    seen, answer, _ = await site.ask("POST", "/body", data=data, headers={"Content-Type": content_type})
    assert seen == status
    assert isinstance(answer, dict)
    assert answer["detail"].startswith(detail), answer


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ('{"name": "a", "number": NaN}', "number", "nan"),
        ('{"name": "a", "number": -1}', "number", "-1"),
        ('{"name": "a", "number": 1, "inner": [1, "x"]}', "inner.1", "x"),
        ('{"name": 1%s, "number": 1}' % ("0" * 1000), "name", "a number of 3322 bits"),
        ('{"name": "%s", "number": 1}' % ("n" * 500), "name", "n" * 100 + "..."),
        ('{"name": "a", "number": 1, "x": {"y": 2}}', "x", "a JSON object with 1 entries"),
        ('{"name": "a"}', "number", "a JSON object with 1 entries"),
        ("[]", "body", "a JSON list with 0 entries"),
        ("null", "body", "None"),
    ],
)
async def test_field_errors_name_field_and_value(site: Site, text: str, field: str, value: str) -> None:
    status, answer, _ = await site.ask(
        "POST", "/body", data=text, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert status == 422, answer
    assert isinstance(answer, dict)
    (entry,) = answer["detail"]
    assert (entry["field"], entry["value"]) == (field, value)
    assert entry["message"]


async def test_chunked_body_above_the_limit(site: Site) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 1000

    async with site.session.post(
        site.url("/body"), data=chunks(), headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 413
        assert await response.json() == {"detail": "the body is larger than the 2000 bytes allowed"}


async def test_announced_body_above_the_limit_is_not_waited_for(site: Site) -> None:
    answer = await site.raw(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"Connection: close" in answer


@pytest.mark.parametrize(
    "garbage",
    [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nbroken header\r\n\r\n"],
)
async def test_garbage_is_refused_quietly(
    site: Site, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    answer = await site.raw(garbage)
    assert answer.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
    assert b"Traceback" not in answer
    assert caplog.records == []
    assert (await site.ask("GET", "/livez"))[0] == 200


async def test_caller_that_leaves_disturbs_nobody(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for data in (
        b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{",
        b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", site.server.port)
        writer.write(data)
        await writer.drain()
        if b"/slow" in data:
            await site.entered.wait()
        await asyncio.sleep(0.05)
        writer.transport.abort()
        await asyncio.sleep(0.05)
    site.release.set()
    async with asyncio.timeout(20):
        while site.app[STATE].running:
            await asyncio.sleep(0.01)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert (await site.ask("GET", "/livez"))[0] == 200


async def test_drain_finishes_running_requests_and_refuses_new_ones(site: Site) -> None:
    running = asyncio.create_task(site.server.run())
    slow = asyncio.create_task(site.ask("GET", "/slow"))
    await site.entered.wait()
    running.cancel()
    await asyncio.sleep(0.05)
    status, answer, response = await site.ask("POST", "/body", json={"name": "a", "number": 1})
    assert (status, answer) == (503, {"detail": "the server is shutting down: try again"})
    assert response.headers["Retry-After"] == "5"
    assert (await site.ask("GET", "/readyz"))[0] == 503
    assert (await site.ask("GET", "/livez"))[0] == 200
    site.release.set()
    assert (await slow)[:2] == (200, {"done": True})
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(aiohttp.ClientConnectorError):
        await site.ask("GET", "/livez")


async def test_drain_ends_at_its_deadline() -> None:
    site = Site()
    site.server = HttpServer(site.app, "127.0.0.1", 0, name="site", drain_s=0.05)
    await site.server.start()
    slow = asyncio.create_task(site.ask("GET", "/slow"))
    await site.entered.wait()
    with capture_logs() as lines:
        await site.server.close()
    with pytest.raises(aiohttp.ClientError):
        await slow
    assert {"event": "requests cut off", "running": 1}.items() <= lines[0].items()
    await site.session.close()


async def test_port_in_use_is_one_sentence(site: Site) -> None:
    second = Site()
    second.server = HttpServer(second.app, "127.0.0.1", site.server.port, name="second")
    with pytest.raises(PortInUse, match=f"second: port {site.server.port} on 127.0.0.1 is in use: stop"):
        await second.server.run()
    with pytest.raises(RuntimeError, match="no port before it is started"):
        _ = second.server.port
    await second.session.close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no-such-host.invalid"])
async def test_host_that_cannot_be_bound(host: str) -> None:
    site = Site()
    with pytest.raises(ConfigError, match=f"site: cannot listen on {host}:0: .*: check the host and port"):
        await HttpServer(site.app, host, 0, name="site").start()
    await site.session.close()


async def test_server_may_lower_the_applications_limit() -> None:
    site = Site()
    site.server = HttpServer(site.app, "127.0.0.1", 0, max_body_bytes=10)
    await site.server.start()
    assert (await site.ask("POST", "/body", json={"name": "a", "number": 1}))[0] == 413
    assert site.server.host == "127.0.0.1"
    await site.session.close()
    await site.server.close()


def test_two_applications_in_one_process_do_not_share_metrics() -> None:
    make: Callable[[], Metrics] = Metrics
    first, second = make(), make()
    first.block_height.set(5)
    assert first.values()["quasar_block_height"] == 5
    assert second.values()["quasar_block_height"] == 0
