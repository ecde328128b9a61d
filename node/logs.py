"""structlog to stderr: console on a terminal, JSON lines otherwise; secrets never get through."""

import logging
import sys
from collections.abc import Mapping
from typing import Any, Literal, TextIO

import structlog
from pydantic import SecretBytes, SecretStr
from structlog.typing import EventDict, Processor, WrappedLogger

REDACTED = "[redacted]"
SECRET_PARTS = (
    "token",
    "salt",
    "password",
    "passphrase",
    "signature",
    "authorization",
    "secret",
    "cookie",
    "mnemonic",
    "private_key",
    "journal_key",
)
"""A key holding any of these, whatever its case, has its value replaced."""
NOT_SECRET = ("tokens_per_sec", "tokens_per_second", "max_tokens", "token_count", "tokens")
"""Throughput and counts of language-model tokens are not tokens of the secret kind."""


def _is_secret(key: str) -> bool:
    lowered = key.lower().replace("-", "_")
    if any(lowered == name or lowered.endswith("_" + name) for name in NOT_SECRET):
        return False
    return any(part in lowered for part in SECRET_PARTS)


def redact(value: Any, *, key: str = "") -> Any:
    """The value without what must not be logged, looked for in nested mappings and sequences too."""
    if isinstance(value, SecretStr | SecretBytes) or (key and _is_secret(key) and value is not None):
        return REDACTED
    if isinstance(value, Mapping):
        return {name: redact(item, key=str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [redact(item) for item in value]
    return value


def _redact_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {name: redact(value, key=name) for name, value in event.items() if name[:1] != "_"} | {
        name: value for name, value in event.items() if name[:1] == "_"
    }


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]


def _formatter(renderer: Processor) -> structlog.stdlib.ProcessorFormatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _redact_event,
            renderer,
        ],
    )


def _install() -> None:
    """Send structlog through the standard library, so that nothing is ever printed on stdout."""
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def configure_logging(
    level: str = "info",
    log_format: Literal["auto", "console", "json"] = "auto",
    *,
    stream: TextIO | None = None,
) -> None:
    """Route every logger of the process to stderr in one format; a second call replaces the first.

    `auto` writes colours for a terminal and one JSON object per line for anything else.
    """
    target = stream if stream is not None else sys.stderr
    is_terminal = target.isatty()
    if log_format == "console" or (log_format == "auto" and is_terminal):
        renderer: Processor = structlog.dev.ConsoleRenderer(
            colors=is_terminal, exception_formatter=structlog.dev.plain_traceback
        )
        formatter = _formatter(renderer)
    else:
        formatter = _formatter(structlog.processors.JSONRenderer(default=str))
        formatter.processors = (
            *formatter.processors[:-1],
            structlog.processors.format_exc_info,
            formatter.processors[-1],
        )
    handler = logging.StreamHandler(target)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # These speak of every request or frame at debug and info.
    for noisy in ("asyncio", "urllib3", "websockets", "aiohttp.access", "alembic"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
    _install()


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module; give values as keywords, never inside the message."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


if not structlog.is_configured():
    # A process that never configures (a worker, a test) must not print log lines on stdout.
    _install()
