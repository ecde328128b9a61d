"""Reading what a server said: its status, its wish to be asked later, its own sentence."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from yarl import URL

from protocol.errors import ConfigError

MAX_DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """Status, headers and whole body of one answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def check_base_url(base_url: str) -> URL:
    """The service's address as a URL; raises ConfigError unless it is plain http(s)://host[:port][/prefix]."""
    try:
        url = URL(base_url)
    except ValueError as error:
        raise ConfigError(f"address {base_url!r} is not a URL: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"address {base_url!r} must look like http://host:port or https://host")
    if url.user is not None or url.password is not None:
        raise ConfigError(f"address http(s)://...@{url.host} must not hold a user name or password")
    return url


def read_retry_after_s(header: str | None, now: datetime) -> float | None:
    """Retry-After as seconds: a number or an HTTP date; None when absent or unreadable (RFC 9110, 10.2.3)."""
    if header is None:
        return None
    if header.strip().isascii() and header.strip().isdigit():
        return float(header.strip()[:9])
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, ((when if when.tzinfo else when.replace(tzinfo=UTC)) - now).total_seconds())


def detail_of(raw: RawAnswer) -> str:
    """The server's own sentence, or the start of its text; field lists become one line."""
    try:
        decoded: Any = json.loads(raw.body)
    except (ValueError, RecursionError):
        decoded = None
    detail = decoded.get("detail") if isinstance(decoded, dict) else None
    if isinstance(detail, list):
        entries = [entry for entry in detail if isinstance(entry, dict)]
        detail = "; ".join(f"{entry.get('field')}: {entry.get('message')}" for entry in entries)
    if not isinstance(detail, str) or not detail:
        detail = raw.body[:MAX_DETAIL_CHARS].decode("utf-8", errors="replace").strip() or "no reason given"
    # One printable line: the text goes to logs and terminals.
    return "".join(char if char.isprintable() else " " for char in detail[: 4 * MAX_DETAIL_CHARS])
