"""The parts of the GitHub API that a miner needs: who am I, is my fork there, make it.

Source: docs.github.com/en/rest (users, repos, forks, rate limits). The token goes into the Authorization
header and nowhere else; redirects are not followed.
"""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from pydantic import SecretStr
from yarl import URL

from node.clock import Clock
from node.http_answers import check_base_url, read_retry_after_s
from node.http_client import new_session
from node.logs import get_logger
from protocol.errors import ConfigError, SourceRejected
from roles.backoff import Backoff

VERSION: Final = "2022-11-28"
CALL_TIMEOUT_S: Final = 20.0
MAX_ANSWER_BYTES: Final = 2**20
READY_S: Final = 300.0
"""How long GitHub may take to make a fork before the operator is told."""
POLL_S: Final = 2.0
LONGEST_WAIT_S: Final = 3700.0
"""A limit lasts an hour at most."""
ATTEMPTS: Final = 6
SHOWN_CHARS: Final = 200

_log = get_logger(__name__)


class GitHubRefused(SourceRejected):
    """GitHub says no; the text says what to do. `status` is the HTTP status."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    document: Any

    @property
    def message(self) -> str:
        text = self.document.get("message") if isinstance(self.document, dict) else None
        return "".join(char for char in str(text or "no reason given") if char.isprintable())[:SHOWN_CHARS]


class GitHub:
    """Calls one GitHub (`api`: https://api.github.com, or https://<host>/api/v3) with one token.

    Limits are waited for, servers that fail are asked again. Raises ConfigError for an address that is none.
    """

    def __init__(
        self,
        api: str,
        token: SecretStr,
        clock: Clock,
        session_factory: Callable[[], aiohttp.ClientSession] = new_session,
    ) -> None:
        self._base = check_base_url(api)
        if self._base.scheme != "https" and self._base.host not in ("127.0.0.1", "localhost"):
            raise ConfigError(f"miner.github_api {api!r}: a token goes over https:// only")
        self._token = token
        self._clock = clock
        self._session_factory = session_factory

    async def ensure_fork(self, owner: str, name: str, username: str) -> None:
        """See to it that `username` has a fork of `owner`/`name` that can be fetched.

        Raises:
            SourceRejected: GitHub refuses (GitHubRefused), is away, or the fork is not ready in time.
        """
        await self.check_user(username)
        fork = await self._get(f"/repos/{username}/{name}")
        if fork is None:
            await self._make(owner, name, username)
            fork = await self._wait_until_made(username, name)
        _check_is_fork(fork, owner, name, username)
        await self._wait_until_filled(username, name, str(fork.get("default_branch") or "main"))

    async def check_user(self, username: str) -> None:
        """See that the token is accepted and is that user's. Raises SourceRejected."""
        answer = await self._call("GET", "/user")
        if answer.status != 200:
            # Tokens of installations have no user; what they may do shows later.
            return
        login = str(answer.document.get("login", ""))
        if login.lower() != username.lower():
            raise GitHubRefused(
                403, f"GITHUB_TOKEN belongs to {login!r} and GITHUB_USERNAME is {username!r}: correct one"
            )

    async def _make(self, owner: str, name: str, username: str) -> None:
        answer = await self._call("POST", f"/repos/{owner}/{name}/forks", {"default_branch_only": True})
        if answer.status not in (200, 201, 202):
            raise GitHubRefused(
                answer.status,
                f"GitHub does not fork {owner}/{name} for {username} ({answer.status}: {answer.message}): "
                "give GITHUB_TOKEN the permission 'Administration: read and write', or fork it by hand",
            )
        made = answer.document.get("full_name") if isinstance(answer.document, dict) else None
        if made is not None and str(made).lower() != f"{username}/{name}".lower():
            raise GitHubRefused(
                409,
                f"GitHub made the fork {str(made)!r}, as {username}/{name} was taken: rename it to {name}",
            )
        _log.info("fork asked for", of=f"{owner}/{name}", owner=username)

    async def _wait_until_made(self, username: str, name: str) -> dict[str, Any]:
        ends = self._clock.monotonic() + READY_S
        while (fork := await self._get(f"/repos/{username}/{name}")) is None:
            await self._pause(ends, username, name)
        return fork

    async def _wait_until_filled(self, username: str, name: str, branch: str) -> None:
        """GitHub answers for a fork before its commits are there."""
        ends = self._clock.monotonic() + READY_S
        while await self._get(f"/repos/{username}/{name}/branches/{branch}") is None:
            await self._pause(ends, username, name)

    async def _pause(self, ends: float, username: str, name: str) -> None:
        if self._clock.monotonic() >= ends:
            raise GitHubRefused(404, f"the fork {username}/{name} is not ready after {READY_S:.0f} s")
        _log.info("fork is not ready yet", fork=f"{username}/{name}")
        await self._clock.sleep(POLL_S)

    async def _get(self, path: str) -> dict[str, Any] | None:
        answer = await self._call("GET", path)
        if answer.status == 404:
            return None
        if answer.status != 200 or not isinstance(answer.document, dict):
            raise GitHubRefused(
                answer.status, f"GitHub answered {answer.status} to GET {path}: {answer.message}"
            )
        return answer.document

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> _Answer:
        """One request; limits are waited for, a server that fails is asked again a few times."""
        backoff = Backoff(self._clock)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = await self._send(method, path, body)
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                failure = SourceRejected(f"GitHub does not answer {method} {path}: {type(error).__name__}")
                if attempt == ATTEMPTS:
                    raise failure from error
                await backoff.wait(failure)
                continue
            if answer.status == 401:
                raise GitHubRefused(
                    401,
                    f"GitHub does not accept GITHUB_TOKEN (401: {answer.message}): it was revoked or has "
                    "expired: set a new one and restart",
                )
            wait_s = _limited_s(answer, self._clock)
            if wait_s is not None and attempt < ATTEMPTS:
                _log.warning("GitHub limits requests", wait_s=round(wait_s), reason=answer.message)
                await self._clock.sleep(wait_s)
            elif answer.status >= 500 and attempt < ATTEMPTS:
                await backoff.wait(GitHubRefused(answer.status, f"GitHub answered {answer.status}"))
            else:
                return answer
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> _Answer:
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {self._token.get_secret_value()}",
            "X-GitHub-Api-Version": VERSION,
        }
        url = URL(str(self._base).rstrip("/") + path)
        async with (
            asyncio.timeout(CALL_TIMEOUT_S),
            self._session_factory() as session,
            session.request(method, url, json=body, headers=headers, allow_redirects=False) as response,
        ):
            text = await response.content.read(MAX_ANSWER_BYTES)
            return _Answer(response.status, response.headers.copy(), json.loads(text) if text else None)


def _limited_s(answer: _Answer, clock: Clock) -> float | None:
    """How long to wait when the answer is about too many requests; None when it is about something else."""
    if answer.status not in (403, 429):
        return None
    asked_s = read_retry_after_s(answer.headers.get("Retry-After"), clock.now())
    reset = answer.headers.get("X-RateLimit-Reset", "")
    if asked_s is None and answer.headers.get("X-RateLimit-Remaining") == "0" and reset.isdigit():
        asked_s = float(reset) - clock.now().timestamp()
    if asked_s is None and answer.status == 429:
        asked_s = 60.0
    return None if asked_s is None else min(max(1.0, asked_s), LONGEST_WAIT_S)


def _check_is_fork(fork: Mapping[str, Any], owner: str, name: str, username: str) -> None:
    target = f"{owner}/{name}".lower()
    origins = [fork.get("parent"), fork.get("source"), fork]
    names = [str(one.get("full_name", "")).lower() for one in origins if isinstance(one, Mapping)]
    if target not in names:
        raise GitHubRefused(
            409,
            f"repository {username}/{name} is there and is no fork of {owner}/{name}: rename or remove it",
        )
