"""Errors as HTTP answers: status, one sentence, never a traceback."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from protocol.errors import (
    InvalidMessage,
    NotPermitted,
    QuasarError,
    SignatureInvalid,
    Temporary,
    Unavailable,
)

UNAVAILABLE_RETRY_AFTER_S = 5


class ApiProblem(QuasarError):
    """Raised by a handler to answer `{"detail": detail}` with a status and headers of its choice."""

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail: Any = detail
        self.headers = dict(headers or {})


class FieldsInvalid(ApiProblem):
    """Raised for a body that does not fit its model: 422 with one entry per field."""

    def __init__(self, fields: Sequence[Mapping[str, str]]) -> None:
        super().__init__(422, "; ".join(f"{entry['field']}: {entry['message']}" for entry in fields))
        self.detail = list(fields)


def json_problem(status: int, detail: Any, headers: Mapping[str, str] | None = None) -> web.Response:
    """The answer `{"detail": detail}`."""
    return web.json_response({"detail": detail}, status=status, headers=dict(headers or {}))


def problem_of(error: Exception) -> ApiProblem | None:
    """The answer for one of the product's errors, None for a bug."""
    if isinstance(error, ApiProblem):
        return error
    if isinstance(error, SignatureInvalid):
        return ApiProblem(401, str(error))
    if isinstance(error, InvalidMessage):
        return ApiProblem(422, str(error))
    if isinstance(error, NotPermitted):
        return ApiProblem(403, str(error))
    if isinstance(error, Unavailable | Temporary):
        return ApiProblem(503, str(error), {"Retry-After": str(UNAVAILABLE_RETRY_AFTER_S)})
    return None
