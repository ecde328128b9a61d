"""The OpenAPI 3.1 description of the API, generated from the models of its routes."""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SCHEMA_PREFIX: Final = "#/components/schemas/"
REASONS: Final = {
    400: "The body is not JSON, or does not open the commitment.",
    401: "A signature is missing, stale, replayed or wrong.",
    403: "Not registered, not permitted, or another's.",
    404: "There is no such thing.",
    408: "The body took too long.",
    409: "It contradicts what is recorded.",
    410: "The commitment has expired.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "A field is wrong; the detail lists fields with message and value.",
    425: "Too early: the detail says how many blocks are left.",
    429: "Too many requests: see Retry-After.",
    503: "The chain or the database is away: see Retry-After.",
}
HIGHEST: Final = {"limit": 500, "window_minutes": 1440}
BODY_ERRORS: Final = (400, 408, 413, 415, 422)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One endpoint: what the server needs to serve it and what the description says about it."""

    method: str
    path: str
    handler: Handler
    summary: str
    answer: type[BaseModel] | None = None
    is_list: bool = False
    may_be_empty: bool = False
    """204 without a body is possible."""
    body: type[BaseModel] | None = None
    query: tuple[str, ...] = ()
    """Names of optional parameters."""
    errors: tuple[int, ...] = ()
    is_validators: bool = False
    """Needs btauth/1 headers of a validator."""


def describe_api(routes: Sequence[Route], *, version: str) -> dict[str, Any]:
    """The OpenAPI document of the routes."""
    bodies = {route.body for route in routes if route.body is not None}
    answers = {route.answer for route in routes if route.answer is not None}
    wanted = [(model, "validation") for model in bodies] + [(model, "serialization") for model in answers]
    references, definitions = models_json_schema(
        sorted(wanted, key=lambda item: (item[0].__name__, item[1])),  # type: ignore[arg-type]
        ref_template=SCHEMA_PREFIX + "{model}",
    )
    schemas: dict[str, Any] = dict(definitions.get("$defs", {}))
    schemas["Problem"] = _problem_schema()
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(_path(route), {})[route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "QUASAR subnet API",
            "version": version,
            "description": "Submissions, evaluation queue and standing of the QUASAR kernel competition.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "btauth": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Bittensor-Signature",
                    "description": "btauth/1: the request signed by a hotkey, bound to the hotkey of /info.",
                }
            },
        },
    }


def _path(route: Route) -> str:
    # aiohttp writes a parameter's pattern into the path: {submission_id:[0-9]+}.
    return "/".join(
        part.split(":", 1)[0] + "}" if part.startswith("{") and ":" in part else part
        for part in route.path.split("/")
    )


def _operation(route: Route, references: Any) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.handler.__name__,
        "responses": _responses(route, references),
    }
    parameters = [_parameter(name, "query") for name in route.query]
    for name in re.findall(r"{(\w+)", route.path):
        parameters.append(_parameter(name, "path"))
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": references[route.body, "validation"]}},
        }
    if route.is_validators:
        operation["security"] = [{"btauth": []}]
    return operation


def _responses(route: Route, references: Any) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    if route.answer is None:
        responses["200"] = {"description": "As the summary says."}
    else:
        schema = references[route.answer, "serialization"]
        if route.is_list:
            schema = {"type": "array", "items": schema}
        responses["200"] = {"description": "Done.", "content": {"application/json": {"schema": schema}}}
    if route.may_be_empty:
        responses["204"] = {"description": "There is nothing to do."}
    codes = {*route.errors, *(BODY_ERRORS if route.body is not None else ())}
    if route.query:
        codes.add(422)
    if route.is_validators:
        codes |= {401, 403}
    problem = {"application/json": {"schema": {"$ref": SCHEMA_PREFIX + "Problem"}}}
    for code in sorted({*codes, 503}):
        responses[str(code)] = {"description": REASONS[code], "content": problem}
    return responses


def _parameter(name: str, where: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"} if name == "hotkey" else {"type": "integer", "minimum": 1}
    if name in HIGHEST:
        schema["maximum"] = HIGHEST[name]
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def _problem_schema() -> dict[str, Any]:
    entry = {
        "type": "object",
        "required": ["field", "message", "value"],
        "properties": {name: {"type": "string"} for name in ("field", "message", "value")},
    }
    return {
        "title": "Problem",
        "description": "One sentence, or one entry for every wrong field.",
        "type": "object",
        "required": ["detail"],
        "properties": {"detail": {"anyOf": [{"type": "string"}, {"type": "array", "items": entry}]}},
    }
