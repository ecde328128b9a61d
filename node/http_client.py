"""HTTP client plumbing: whole-call deadlines, retries of what may pass, signed requests, bounded answers."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Self, TypeVar, overload

import aiohttp
from pydantic import BaseModel, TypeAdapter, ValidationError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)
from yarl import URL

from node.clock import Clock, SystemClock
from node.http_answers import MAX_DETAIL_CHARS, RawAnswer, check_base_url, detail_of, read_retry_after_s
from node.logs import get_logger
from protocol.auth import sign_request
from protocol.errors import ApiRefused, ApiUnavailable, ConfigError
from protocol.signing import Signer

AnswerT = TypeVar("AnswerT")
Receiver = Callable[[], str | Awaitable[str]]
"""Gives the hotkey that a signed request is bound to."""

MAX_ANSWER_BYTES = 8 * 1024 * 1024
CHUNK_BYTES = 65_536
BACKOFF_START_S = 0.25
BACKOFF_MAX_S = 10.0
LEAST_ATTEMPT_S = 0.05
"""With less left no attempt is begun: its own lateness would hide why those before it failed."""

_log = get_logger(__name__)


def new_session() -> aiohttp.ClientSession:
    """A session without cookies; answers are taken uncompressed, so that a small one cannot grow."""
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"Accept-Encoding": "identity", "User-Agent": "quasar-node"},
    )


class _Transient(Exception):
    """An attempt failed in a way that a later one may not."""

    def __init__(
        self, reason: str, answer: RawAnswer | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(reason)
        self.answer = answer
        self.retry_after_s = retry_after_s


class HttpClient:
    """Calls one service; `async with` it or call `close`.

    `timeout_s` limits one attempt, `attempts_deadline_s` the whole call with its retries. `receiver` gives
    the hotkey that signed requests are bound to (each attempt is signed anew: nonces are single-use).
    """

    def __init__(
        self,
        session_factory: Callable[[], aiohttp.ClientSession] = new_session,
        base_url: str = "",
        *,
        timeout_s: float = 10.0,
        attempts_deadline_s: float = 60.0,
        signer: Signer | None = None,
        receiver: Receiver | None = None,
        clock: Clock | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._session_factory = session_factory
        self._session: aiohttp.ClientSession | None = None
        self._base = check_base_url(base_url)
        self._timeout_s = timeout_s
        self._deadline_s = attempts_deadline_s
        self._signer = signer
        self._receiver = receiver
        self._clock = clock if clock is not None else SystemClock()
        self._max_answer_bytes = max_answer_bytes

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; a later request opens new ones."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @overload
    async def request(
        self,
        method: str,
        path: str,
        *,
        answer: type[AnswerT],
        body: BaseModel | None = None,
        params: Mapping[str, str | int] | None = None,
        signed: bool = False,
        is_retried: bool = True,
    ) -> AnswerT: ...

    @overload
    async def request(
        self,
        method: str,
        path: str,
        *,
        answer: None = None,
        body: BaseModel | None = None,
        params: Mapping[str, str | int] | None = None,
        signed: bool = False,
        is_retried: bool = True,
    ) -> None: ...

    async def request(
        self,
        method: str,
        path: str,
        *,
        answer: type[AnswerT] | None = None,
        body: BaseModel | None = None,
        params: Mapping[str, str | int] | None = None,
        signed: bool = False,
        is_retried: bool = True,
    ) -> AnswerT | None:
        """Send a request and read its answer as `answer` (a model, or any type that pydantic knows).

        Raises ApiRefused for a 4xx or a redirect (`retry_after_s` for 425 and 429), ApiUnavailable when no
        usable answer came before the deadline. Connection failures, 5xx and 429 are retried, other refusals
        not; without `is_retried` there is one attempt, for a caller that must ask before it sends again.
        """
        raw = await self._send(method, path, body, params, signed, is_retried=is_retried)
        if answer is None:
            return None
        return self._parse(raw, answer, method, path)

    async def request_optional(
        self,
        method: str,
        path: str,
        *,
        answer: type[AnswerT],
        body: BaseModel | None = None,
        params: Mapping[str, str | int] | None = None,
        signed: bool = False,
    ) -> AnswerT | None:
        """Like `request` for an endpoint that may answer 204: None then."""
        raw = await self._send(method, path, body, params, signed)
        return None if raw.status == 204 else self._parse(raw, answer, method, path)

    def _parse(self, raw: RawAnswer, answer: type[AnswerT], method: str, path: str) -> AnswerT:
        try:
            return TypeAdapter(answer).validate_json(raw.body)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "body"
            name = getattr(answer, "__name__", str(answer))
            raise ApiUnavailable(
                f"{method} {self._show(path)} answered {raw.status} with something that is no {name} "
                f"({where}: {first['msg']}): does the address belong to this service, in this version?"
            ) from error

    def _show(self, path: str) -> str:
        return (
            f"{self._base.with_path('')}".rstrip("/") + self._base.path.rstrip("/") + path.partition("?")[0]
        )

    async def _send(
        self,
        method: str,
        path: str,
        body: BaseModel | None,
        params: Mapping[str, str | int] | None,
        signed: bool,
        *,
        is_retried: bool = True,
    ) -> RawAnswer:
        url = self._url(path, params)
        payload = b"" if body is None else body.model_dump_json(exclude_none=True).encode()
        started = self._clock.monotonic()

        async def attempt() -> RawAnswer:
            left_s = self._deadline_s - (self._clock.monotonic() - started)
            return await self._attempt(method, url, payload, signed, min(self._timeout_s, max(left_s, 0.001)))

        def out_of_time(state: RetryCallState) -> bool:
            spent_s = self._clock.monotonic() - started
            left_s = self._deadline_s - spent_s - state.upcoming_sleep
            return not is_retried or left_s < LEAST_ATTEMPT_S

        retrying = AsyncRetrying(
            sleep=self._clock.sleep,
            retry=retry_if_exception_type(_Transient),
            wait=_wait_s,
            stop=out_of_time,
            before_sleep=lambda state: self._log_retry(state, method, path),
            reraise=True,
        )
        try:
            return await retrying(attempt)
        except _Transient as failure:
            raise self._surface(failure, method, path) from failure.__cause__

    def _url(self, path: str, params: Mapping[str, str | int] | None) -> URL:
        if not path.startswith("/"):
            raise ValueError(f"path must start with /, not {path!r}")
        joined = URL(str(self._base).rstrip("/") + path, encoded=True)
        return joined.update_query({name: str(value) for name, value in params.items()}) if params else joined

    def _log_retry(self, state: RetryCallState, method: str, path: str) -> None:
        failure = state.outcome.exception() if state.outcome is not None else None
        _log.warning(
            "request failed, will be tried again",
            method=method,
            url=self._show(path),
            reason=str(failure),
            attempt=state.attempt_number,
            wait_s=round(state.upcoming_sleep, 3),
        )

    def _surface(self, failure: _Transient, method: str, path: str) -> ApiRefused | ApiUnavailable:
        if failure.answer is not None and failure.answer.status == 429:
            return ApiRefused(429, detail_of(failure.answer), failure.retry_after_s)
        return ApiUnavailable(
            f"{method} {self._show(path)}: {failure} (gave up after {self._deadline_s:g} s): "
            "check the address and that the service runs"
        )

    async def _attempt(
        self, method: str, url: URL, payload: bytes, signed: bool, timeout_s: float
    ) -> RawAnswer:
        try:
            async with asyncio.timeout(timeout_s):
                headers = await self._headers(method, url, payload, signed)
                if self._session is None:
                    self._session = self._session_factory()
                async with self._session.request(
                    method, url, data=payload or None, headers=headers, allow_redirects=False
                ) as response:
                    raw = RawAnswer(response.status, response.headers.copy(), await self._read(response))
        except TimeoutError as error:
            raise _Transient(f"no answer within {timeout_s:.3g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Transient(f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]) from error
        return self._judge(raw)

    async def _headers(self, method: str, url: URL, payload: bytes, signed: bool) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if payload:
            headers["Content-Type"] = "application/json"
        if not signed:
            return headers
        if self._signer is None or self._receiver is None:
            raise ConfigError(
                f"{method} {url.path} must be signed, but this client has no hotkey or no receiver"
            )
        receiver = self._receiver()
        if inspect.isawaitable(receiver):
            receiver = await receiver
        return headers | sign_request(
            self._signer, method=method, path=url.raw_path_qs, body=payload, receiver=receiver
        )

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        parts = bytearray()
        async for chunk in response.content.iter_chunked(CHUNK_BYTES):
            parts += chunk
            if len(parts) > self._max_answer_bytes:
                response.close()
                raise ApiUnavailable(
                    f"{response.method} {response.url.path} answered more than the "
                    f"{self._max_answer_bytes} bytes that are read"
                )
        return bytes(parts)

    def _judge(self, raw: RawAnswer) -> RawAnswer:
        """The answer when it is a success; raises what the status stands for otherwise."""
        if 200 <= raw.status < 300:
            encoding = raw.headers.get("Content-Encoding", "identity")
            if encoding != "identity":
                raise ApiUnavailable(f"the answer came encoded as {encoding[:50]}, which was not asked for")
            return raw
        retry_after_s = read_retry_after_s(raw.headers.get("Retry-After"), self._clock.now())
        if raw.status == 429 or raw.status >= 500:
            raise _Transient(f"answered {raw.status}: {detail_of(raw)}", raw, retry_after_s)
        if 300 <= raw.status < 400:
            target = raw.headers.get("Location", "nowhere")[:MAX_DETAIL_CHARS]
            raise ApiRefused(
                raw.status, f"redirected to {target}: redirects are not followed, set that address"
            )
        raise ApiRefused(raw.status, detail_of(raw), retry_after_s)


def _wait_s(state: RetryCallState) -> float:
    """Seconds until the next attempt: jittered and growing, and never less than the server asked for."""
    backoff_s = float(wait_random_exponential(multiplier=BACKOFF_START_S, max=BACKOFF_MAX_S)(state))
    failure = state.outcome.exception() if state.outcome is not None else None
    asked_s = failure.retry_after_s if isinstance(failure, _Transient) else None
    return max(backoff_s, asked_s or 0.0)
