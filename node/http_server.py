"""aiohttp server plumbing: JSON errors for everything, health, readiness, metrics, limits and drain."""

import asyncio
import contextlib
import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import BaseModel

from node.http_errors import ApiProblem, FieldsInvalid, json_problem, problem_of
from node.http_json import parse_model
from node.http_silence import close_silent
from node.logs import get_logger
from node.metrics import CONTENT_TYPE, Metrics
from protocol.errors import ConfigError, PortInUse

__all__ = ["STATE", "ApiProblem", "FieldsInvalid", "HttpServer", "ServerState", "base_app", "json_body"]

READINESS_TIMEOUT_S = 5.0
DRAIN_RETRY_AFTER_S = 5
BODY_S = 20.0
"""How long the body of a request may take."""
KEEPALIVE_S = 75.0
ALWAYS_ANSWERED = ("/livez", "/metrics")
"""Paths that answer normally while the server drains."""

MAX_BODY_BYTES: Final = 65_536
"""Of a request, unless the application says otherwise; a verdict with all its evidence has to fit."""

_log = get_logger(__name__)

ModelT = TypeVar("ModelT", bound=BaseModel)

Readiness = Callable[[], Awaitable[str | None]]
"""Returns None when the service can do its work, else the reason why not."""


@dataclass(slots=True)
class ServerState:
    """What the server and its handlers share; long answers (streams) must end when `draining` is set."""

    max_body_bytes: int
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    spoken: set[asyncio.BaseProtocol] = field(default_factory=set)
    """Connections that have sent a request."""
    running: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


STATE = web.AppKey("state", ServerState)


def base_app(
    *, readiness: Readiness, metrics: Metrics, max_body_bytes: int = MAX_BODY_BYTES
) -> web.Application:
    """An application with /livez, /readyz and /metrics whose every error is JSON `{"detail": ...}`.

    Bodies above `max_body_bytes` answer 413. Routes are added by the caller.
    """
    app = web.Application(client_max_size=max_body_bytes, middlewares=[_middleware(metrics)])
    app[STATE] = ServerState(max_body_bytes=max_body_bytes)

    async def livez(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def readyz(_request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(READINESS_TIMEOUT_S):
                reason = await readiness()
        except TimeoutError:
            reason = f"the readiness check took longer than {READINESS_TIMEOUT_S:g} s"
        if reason is not None:
            return json_problem(503, reason)
        return web.json_response({"status": "ready"})

    async def show_metrics(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
    return app


def _middleware(metrics: Metrics) -> Middleware:
    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        state = request.config_dict[STATE]
        loop = asyncio.get_running_loop()
        started = loop.time()
        state.running += 1
        state.spoken.add(request.protocol)
        try:
            response = await _answer_or_refuse(request, handler, state)
        finally:
            state.running -= 1
            if state.running == 0:
                state.idle.set()
        resource = request.match_info.route.resource
        # The pattern and not the path: the number of series must not grow with what callers ask for.
        route = resource.canonical if resource is not None else "none"
        method = request.method if request.method in ("GET", "POST", "HEAD", "PUT", "DELETE") else "other"
        metrics.http_requests.labels(method, route, str(response.status)).inc()
        metrics.http_request_duration.labels(route).observe(loop.time() - started)
        return response

    return answer


async def _answer_or_refuse(request: web.Request, handler: Handler, state: ServerState) -> web.StreamResponse:
    if state.draining.is_set() and request.path not in ALWAYS_ANSWERED:
        response = json_problem(
            503, "the server is shutting down: try again", {"Retry-After": str(DRAIN_RETRY_AFTER_S)}
        )
        response.force_close()
        return response
    if request.content_length is not None and request.content_length > state.max_body_bytes:
        response = _too_large(state)
        # The body was not read: this connection cannot be used for another request.
        response.force_close()
        return response
    try:
        return await handler(request)
    except web.HTTPRequestEntityTooLarge:
        response = _too_large(state)
        response.force_close()
        return response
    except (ConnectionError, web.RequestPayloadError) as error:
        # The caller went away or broke off its body; nobody will read this answer.
        _log.debug("request broken off", path=request.path, error=str(error))
        return json_problem(400, "the request body broke off")
    except web.HTTPException as problem:
        if problem.status < 400:
            raise
        return json_problem(problem.status, _sentence(request, problem), _kept_headers(problem))
    except Exception as error:  # noqa: BLE001 - the server's edge: a failed request must not end the server
        known = problem_of(error)
        if known is None:
            _log.error("request failed", method=request.method, path=request.path, exc_info=error)
            return json_problem(500, "internal error")
        return json_problem(known.status, known.detail, known.headers)


def _too_large(state: ServerState) -> web.Response:
    return json_problem(413, f"the body is larger than the {state.max_body_bytes} bytes allowed")


def _sentence(request: web.Request, problem: web.HTTPException) -> str:
    if isinstance(problem, web.HTTPNotFound):
        return f"there is no {request.path[:200]} here"
    if isinstance(problem, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(problem.allowed_methods))
        return f"{request.path[:200]} does not take {problem.method[:20]}: use {allowed}"
    return problem.text if problem.text and "\n" not in problem.text else problem.reason


def _kept_headers(problem: web.HTTPException) -> Mapping[str, str]:
    return {
        name: value
        for name, value in problem.headers.items()
        if name.lower() not in ("content-type", "content-length")
    }


async def json_body(request: web.Request, model: type[ModelT]) -> ModelT:
    """The request's body as a model.

    Answers 415 for another content type, 413 above the limit, 400 when it is not JSON, and 422 with a list of
    fields when it does not fit the model.
    """
    content_type = request.content_type
    if content_type != "application/json" and not content_type.endswith("+json"):
        sent = request.headers.get("Content-Type", "none")[:100]
        raise ApiProblem(415, f"Content-Type must be application/json, not {sent}")
    return parse_model(model, await read_body(request))


async def read_body(request: web.Request) -> bytes:
    """The whole body; answers 413 above the limit and 408 when it takes too long."""
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError as error:
        raise ApiProblem(408, f"the body took longer than {BODY_S:g} s", {"Connection": "close"}) from error


class HttpServer:
    """Component that serves one application on one address until it is cancelled, then drains.

    `drain_s`: how long running requests may take once the server is told to stop; new ones get 503 meanwhile.
    `max_body_bytes` lowers the application's own limit when given.
    """

    def __init__(
        self,
        app: web.Application,
        host: str,
        port: int,
        *,
        name: str = "http",
        drain_s: float = 10.0,
        max_body_bytes: int | None = None,
    ) -> None:
        self.name = name
        self._app = app
        self._host = host
        self._asked_port = port
        self._drain_s = drain_s
        self._runner: web.AppRunner | None = None
        self._reaper: asyncio.Task[None] | None = None
        self._port: int | None = None
        if max_body_bytes is not None:
            app[STATE].max_body_bytes = min(max_body_bytes, app[STATE].max_body_bytes)

    @property
    def host(self) -> str:
        """The address that the server binds."""
        return self._host

    @property
    def port(self) -> int:
        """The bound port, also when 0 was asked for; only after `start`."""
        if self._port is None:
            raise RuntimeError(f"server {self.name} has no port before it is started")
        return self._port

    async def start(self) -> None:
        """Bind and answer from now on; nothing happens when started already.

        Raises PortInUse when the port is taken, ConfigError when the host or port cannot be bound at all.
        """
        if self._runner is not None:
            return
        runner = web.AppRunner(
            self._app,
            access_log=None,
            logger=_wire_log,
            handle_signals=False,
            # Answers whose handlers are done may still be on their way out.
            shutdown_timeout=1.0,
            # How long a body that was refused is read on, so that its sender gets to see why.
            lingering_time=1.0,
            keepalive_timeout=KEEPALIVE_S,
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, self._host, self._asked_port)
            await site.start()
        except OSError as error:
            await runner.cleanup()
            raise self._refusal(error) from error
        self._runner = runner
        self._reaper = asyncio.create_task(
            close_silent(runner, self._app[STATE].spoken), name=f"{self.name}-silent"
        )
        self._port = int(runner.addresses[0][1])
        _log.info("listening", server=self.name, host=self._host, port=self._port)

    def _refusal(self, error: OSError) -> PortInUse | ConfigError:
        where = f"{self._host}:{self._asked_port}"
        if error.errno == errno.EADDRINUSE:
            return PortInUse(
                f"{self.name}: port {self._asked_port} on {self._host} is in use: stop the other program "
                "or set another port"
            )
        reason = error.strerror or str(error)
        return ConfigError(
            f"{self.name}: cannot listen on {where}: {reason}: check the host and port settings"
        )

    async def run(self) -> None:
        """Serve until cancelled, then drain and close."""
        await self.start()
        try:
            await asyncio.Event().wait()
        finally:
            await self.close()

    async def close(self) -> None:
        """Refuse new requests, wait up to `drain_s` for running ones, free the port."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        state = self._app[STATE]
        state.draining.set()
        try:
            if state.running:
                state.idle.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._drain_s):
                        await state.idle.wait()
            if state.running:
                _log.warning(
                    "requests cut off", server=self.name, running=state.running, drain_s=self._drain_s
                )
        finally:
            if self._reaper is not None:
                self._reaper.cancel()
            await runner.cleanup()


class _WireLog(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's own log of a connection: strangers send garbage to open ports."""

    def exception(self, msg: object, *args: object, **_kwargs: object) -> None:
        """Log what aiohttp calls an error of its own, at debug level."""
        self.debug(msg, *args)


_wire_log = _WireLog(logging.getLogger(f"{__name__}.wire"))
