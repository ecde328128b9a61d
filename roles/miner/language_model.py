"""Language models as the agent asks them: an OpenAI-compatible endpoint, or one on this machine."""

import ipaddress
from typing import Any, Final, Protocol

import aiohttp
from pydantic import BaseModel, Field, SecretStr
from yarl import URL

from node.clock import Clock
from node.http_answers import check_base_url
from node.http_client import HttpClient, new_session
from node.logs import get_logger
from node.settings_model import AgentSection
from node.workers import WorkerProcess
from protocol.errors import (
    ApiRefused,
    ApiUnavailable,
    ConfigError,
    Temporary,
    WorkerFailed,
    WorkerRefused,
)

MAX_ANSWER_BYTES: Final = 8 * 2**20
LOAD_S: Final = 3600.0
"""Loading may include a download."""

_log = get_logger(__name__)


class ModelFailed(Temporary):
    """The model gave no answer; the text says why."""


class LanguageModel(Protocol):
    """Whoever answers a prompt."""

    async def complete(self, system: str, user: str) -> str:
        """The answer. Raises ModelFailed."""


class _Message(BaseModel):
    role: str = "assistant"
    content: str


class _Question(BaseModel):
    model: str
    messages: list[_Message]
    max_tokens: int
    temperature: float
    stream: bool = False


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class Endpoint:
    """`POST {base_url}/chat/completions`, as OpenAI documents it and many servers speak it.

    The key goes into the Authorization header and nowhere else; redirects are not followed. Raises
    ConfigError for an address that is none, and for a key over plain HTTP to another machine.
    """

    def __init__(self, settings: AgentSection, clock: Clock) -> None:
        assert settings.base_url is not None
        self._settings = settings
        self._key = settings.api_key
        _check_transport(check_base_url(settings.base_url), self._key)
        self._http = HttpClient(
            self._session,
            settings.base_url,
            timeout_s=settings.timeout_s,
            attempts_deadline_s=2 * settings.timeout_s,
            clock=clock,
            max_answer_bytes=MAX_ANSWER_BYTES,
        )

    async def complete(self, system: str, user: str) -> str:
        """The model's answer. Raises ModelFailed."""
        question = _Question(
            model=self._settings.model,
            messages=[_Message(role="system", content=system), _Message(role="user", content=user)],
            max_tokens=self._settings.max_tokens,
            temperature=self._settings.temperature,
        )
        try:
            answer = await self._http.request("POST", "/chat/completions", body=question, answer=_Completion)
        except (ApiRefused, ApiUnavailable) as error:
            raise ModelFailed(f"the language model does not answer: {self._redacted(str(error))}") from None
        finally:
            await self._http.close()
        choice = answer.choices[0]
        if choice.finish_reason == "length":
            _log.warning("the model's answer was cut off: raise agent.max_tokens")
        return choice.message.content

    def _session(self) -> aiohttp.ClientSession:
        session = new_session()
        if self._key is not None:
            session.headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return session

    def _redacted(self, text: str) -> str:
        # Some servers repeat the key in what they say about it.
        return text if self._key is None else text.replace(self._key.get_secret_value(), "***")


class LocalModel:
    """A model that transformers can load, in a process of its own for each answer: memory is given back."""

    def __init__(self, settings: AgentSection, device: str, clock: Clock) -> None:
        self._settings = settings
        self._device = device
        self._clock = clock

    async def complete(self, system: str, user: str) -> str:
        """The model's answer. Raises ModelFailed."""
        worker = WorkerProcess("roles.miner.agent_worker", clock=self._clock)
        params: dict[str, Any] = {
            "model": self._settings.model,
            "device": self._device,
            "system": system,
            "user": user,
            "max_tokens": self._settings.max_tokens,
            "temperature": self._settings.temperature,
        }
        try:
            answer = await worker.call("complete", params, LOAD_S + self._settings.timeout_s)
        except (WorkerFailed, WorkerRefused) as error:
            raise ModelFailed(f"the language model does not answer: {error}") from error
        finally:
            await worker.close()
        return str(answer["text"])


def open_language_model(settings: AgentSection, device: str, clock: Clock) -> LanguageModel:
    """The model that the settings name. Raises ConfigError."""
    if not settings.model:
        raise ConfigError("miner.proposer is 'agent' but agent.model names no model: set it")
    if settings.base_url is not None:
        return Endpoint(settings, clock)
    return LocalModel(settings, device, clock)


def _check_transport(url: URL, key: SecretStr | None) -> None:
    if url.scheme == "https" or key is None or _is_loopback(url.host or ""):
        return
    raise ConfigError(
        f"agent.base_url {str(url)!r} is plain HTTP to another machine, and AGENT_API_KEY would be readable "
        "on the way: use https://"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
