"""What a model cannot say about the fields of a body."""

import math
from typing import Any

from protocol.messages import ComparisonFigures, Figures
from protocol.rules import RULES_VERSION


def field_problem(field: str, message: str, value: object) -> dict[str, str]:
    """One entry of FieldsInvalid."""
    return {"field": field, "message": message, "value": str(value)}


def figures_problems(figures: Figures | ComparisonFigures) -> list[dict[str, str]]:
    """What is wrong with figures of a referee, whatever they are about."""
    problems = non_finite_fields("evidence", figures.evidence)
    if figures.rules_version != RULES_VERSION:
        problems.append(field_problem("rules_version", f"must be {RULES_VERSION}", figures.rules_version))
    return problems


def non_finite_fields(name: str, value: Any) -> list[dict[str, str]]:
    """One entry for every NaN and infinity inside a parsed JSON value: no other JSON reader would take it."""
    if isinstance(value, float) and not math.isfinite(value):
        return [{"field": name, "message": f"must be a finite number, not {value!r}", "value": repr(value)}]
    inside: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        inside = [(f"{name}.{key}", item) for key, item in value.items()]
    elif isinstance(value, list):
        inside = [(f"{name}.{index}", item) for index, item in enumerate(value)]
    return [problem for path, item in inside for problem in non_finite_fields(path, item)]
