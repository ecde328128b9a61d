"""Numbers in free-form JSON: what no other JSON reader would take must not be stored."""

import math
from typing import Any


def non_finite_fields(name: str, value: Any) -> list[dict[str, str]]:
    """One field error for every NaN and infinity inside a parsed JSON value."""
    if isinstance(value, float) and not math.isfinite(value):
        return [{"field": name, "message": f"must be a finite number, not {value!r}", "value": repr(value)}]
    inside: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        inside = [(f"{name}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list):
        inside = [(f"{name}.{index}", item) for index, item in enumerate(value)]
    return [problem for path, item in inside for problem in non_finite_fields(path, item)]
