"""By how much honest servers and impostors are apart, in the measure of logit verification (needs torch)."""

import statistics
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.logits import compare_logits
from roles.inference.engine import Engine
from roles.inference.impostors import HONEST, IMPOSTORS, bfloat16

Rows = npt.NDArray[np.float32]
"""Logits [positions, V]."""


def margins(reference: Engine, prompt: list[int], tokens: list[int]) -> dict[str, Any]:
    """How far each is from `reference` (float32) at every position of `tokens` after `prompt`."""
    rows = reference.read(prompt, tokens)
    rounded = reference.in_float16().read(prompt, tokens)
    found: dict[str, Any] = {
        "logit_spread": float(rows.std(axis=1).mean()),
        "float16": _distance(rows, rounded, rounded),
    }
    for name, make in {**HONEST, "bfloat16": bfloat16, **IMPOSTORS}.items():
        found[name] = _distance(rows, make(reference).read(prompt, tokens), rounded)
    return found


def _distance(reference: Rows, rows: Rows, rounded: Rows) -> dict[str, float]:
    """How far rows are from the reference, over all positions; `rounded` is the reference in float16."""
    compared = [compare_logits(one, other) for one, other in zip(reference, rows, strict=True)]
    rounding = [compare_logits(one, other) for one, other in zip(reference, rounded, strict=True)]
    times = [one.relative_error / other.relative_error for one, other in zip(compared, rounding, strict=True)]
    chosen = reference[np.arange(len(rows)), rows.argmax(axis=1)]
    gaps = reference.max(axis=1) - chosen
    return {
        "times_rounding_smallest": min(times),
        "times_rounding_median": statistics.median(times),
        "times_rounding_largest": max(times),
        "relative_error_median": statistics.median(one.relative_error for one in compared),
        "max_abs_diff_smallest": min(one.max_abs_diff for one in compared),
        "max_abs_diff_largest": max(one.max_abs_diff for one in compared),
        "cosine_similarity_smallest": min(one.cosine_similarity for one in compared),
        "share_of_other_tokens": float((gaps > 0).mean()),
        "largest_gap": float(gaps.max()),
    }
