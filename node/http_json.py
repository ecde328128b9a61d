"""JSON bodies from strangers into models, with errors that name the field and the value."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from node.http_errors import ApiProblem, FieldsInvalid

MAX_SHOWN_CHARS = 100
MAX_SHOWN_FIELDS = 20

ModelT = TypeVar("ModelT", bound=BaseModel)


def parse_model(model: type[ModelT], body: bytes) -> ModelT:
    """The body as a model; raises ApiProblem (400: not JSON) or FieldsInvalid (422)."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        if problems[0]["type"] == "json_invalid":
            reason = problems[0].get("ctx", {}).get("error", "malformed")
            raise ApiProblem(400, f"the body is not JSON: {reason}") from error
        raise FieldsInvalid(
            [
                {
                    "field": ".".join(str(part)[:MAX_SHOWN_CHARS] for part in problem["loc"]) or "body",
                    "message": problem["msg"],
                    "value": show_value(problem["input"]),
                }
                for problem in problems[:MAX_SHOWN_FIELDS]
            ]
        ) from error


def show_value(value: Any) -> str:
    """A short text of any parsed JSON value, safe for huge numbers and NaN."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, dict | list):
        kind = "object" if isinstance(value, dict) else "list"
        return f"a JSON {kind} with {len(value)} entries"
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."
