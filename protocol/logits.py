"""Comparison of a miner's logits with the reference's (all over float32 values)."""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.errors import InvalidMessage
from protocol.rules import (
    MAX_ABS_DIFFERENCE,
    MAX_RELATIVE_TO_ROUNDING,
    MIN_COSINE_SIMILARITY,
    NEGLIGIBLE_ROUNDING,
)

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How near two logit vectors are."""

    cosine_similarity: float
    max_abs_diff: float
    relative_error: float
    """Root mean square of the difference over the standard deviation of the reference."""


def compare_logits(reference: npt.NDArray[np.floating], captured: npt.NDArray[np.floating]) -> Comparison:
    """Compare two logit vectors of shape `[V]`; NaN or infinity anywhere makes the figures NaN.

    Raises:
        InvalidMessage: the shapes differ, or are not one dimension of at least one value.
    """
    if reference.shape != captured.shape or reference.ndim != 1 or reference.size == 0:
        raise InvalidMessage(
            f"captured_logits have shape {captured.shape} where the reference has {reference.shape}; "
            "send one value for each token of the vocabulary"
        )
    one = reference.astype(np.float64)
    other = captured.astype(np.float64)
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return Comparison(float("nan"), float("nan"), float("nan"))
    # Scaled first, so that neither huge nor tiny values leave the range of the squares.
    scale_one, scale_other = np.abs(one).max(), np.abs(other).max()
    cosine = float("nan")
    if scale_one > 0 and scale_other > 0:
        unit_one, unit_other = one / scale_one, other / scale_other
        cosine = float(unit_one @ unit_other / (np.linalg.norm(unit_one) * np.linalg.norm(unit_other)))
    with np.errstate(over="ignore"):
        difference = float(np.abs(one - other).max())
    return Comparison(cosine, difference, _relative_error(one, other, max(scale_one, scale_other)))


def logits_match(comparison: Comparison) -> bool:
    """Tell whether a comparison meets the subnet's thresholds; a NaN does not."""
    return (
        comparison.cosine_similarity >= MIN_COSINE_SIMILARITY
        and comparison.max_abs_diff <= MAX_ABS_DIFFERENCE
    )


def rounding_explains(comparison: Comparison, rounding: Comparison) -> bool:
    """Tell whether the same weights in float16 can be so far from the reference; a NaN is not explained.

    `rounding` compares the reference with its own run in float16 on the same text, so that the limit needs
    no figure for any model: it is as wide as this text makes it.
    """
    allowed = max(NEGLIGIBLE_ROUNDING, MAX_RELATIVE_TO_ROUNDING * rounding.relative_error)
    return comparison.relative_error <= allowed


def encode_logits(array: npt.NDArray[np.floating]) -> str:
    """Encode logits as base64 of little-endian float32 values."""
    with np.errstate(over="ignore"):
        return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


def logits_digest(array: npt.NDArray[np.floating]) -> str:
    """Hash logits for the miner's signature: SHA-256 in hex of little-endian float32 values."""
    with np.errstate(over="ignore"):
        return hashlib.sha256(array.astype("<f4").tobytes()).hexdigest()


def decode_logits(captured: list[float] | str, vocab_size: int) -> Float32Array:
    """Decode captured logits, given as a list of numbers or as base64, to float32 `[V]`; NaN passes through.

    Raises:
        InvalidMessage: not base64, not numbers, or not one value for each token of the vocabulary.
    """
    values = _from_base64(captured, vocab_size) if isinstance(captured, str) else _from_list(captured)
    if values.shape != (vocab_size,):
        raise InvalidMessage(
            f"captured_logits hold {values.size} values; send one for each of the {vocab_size} tokens"
        )
    return values


def first_wrong(gaps: Sequence[float], tolerance: float) -> int | None:
    """Find the first generated token that the reference would not have taken; None when it took them all.

    `gaps` `[G]`: by how much each token's logit lies below the largest of the distribution from which it was
    taken. A token is right within `tolerance`, so a near-tie does not fail an honest miner; NaN is wrong.
    """
    return next((index for index, gap in enumerate(gaps) if not gap <= tolerance), None)


def _relative_error(
    reference: npt.NDArray[np.float64], captured: npt.NDArray[np.float64], scale: float
) -> float:
    if not scale > 0:
        return 0.0
    one, other = reference / scale, captured / scale
    error = float(np.sqrt(np.mean(np.square(one - other))))
    spread = float(one.std())
    if spread > 0:
        return error / spread
    return 0.0 if error == 0 else float("inf")


def _from_base64(text: str, vocab_size: int) -> Float32Array:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidMessage(f"captured_logits are not base64: {error}") from error
    if len(data) != 4 * vocab_size:
        raise InvalidMessage(
            f"captured_logits are {len(data)} bytes; {vocab_size} float32 values are {4 * vocab_size}"
        )
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _from_list(values: list[float]) -> Float32Array:
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values, dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidMessage(f"captured_logits are not a list of numbers: {error}") from error
