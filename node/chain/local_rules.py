"""What the embedded local chain refuses, under the names that the real chain uses."""

from collections.abc import Sequence
from typing import Any

from node.chain.local_state import RAO_PER_TAO, U16_MAX, ExtrinsicRefused, LocalNeuron, LocalParameters

COMMITMENT_BYTES_MAX = 128


def check_setter(neuron: LocalNeuron, parameters: LocalParameters, height: int) -> None:
    """Refuse a neuron that may not set weights, or not yet."""
    if not neuron.validator_permit and neuron.hotkey != parameters.owner_hotkey:
        raise ExtrinsicRefused("NeuronNoValidatorPermit", f"hotkey {neuron.hotkey} has no validator permit")
    if neuron.stake_rao < parameters.min_stake_rao:
        raise ExtrinsicRefused(
            "NotEnoughStakeToSetWeights",
            f"hotkey {neuron.hotkey} has {neuron.stake_rao / RAO_PER_TAO:g} TAO of stake, setting weights "
            f"needs {parameters.min_stake_rao / RAO_PER_TAO:g}",
        )
    since = height - neuron.last_update
    if neuron.last_update > 0 and since < parameters.weights_rate_limit:
        raise ExtrinsicRefused(
            "SettingWeightsTooFast",
            f"weights were set {since} blocks ago and the rate limit is {parameters.weights_rate_limit}: "
            f"wait {parameters.weights_rate_limit - since} blocks",
        )


def checked_row(
    neuron: LocalNeuron,
    targets: Sequence[int],
    values: Sequence[int],
    known: set[int],
    parameters: LocalParameters,
) -> list[tuple[int, int]]:
    """Validated (UID, value) pairs, scaled up so that the largest is 65,535 as the chain stores them."""
    if len(targets) != len(values):
        raise ExtrinsicRefused("WeightVecNotEqualSize", f"{len(targets)} UIDs but {len(values)} weights")
    if len(set(targets)) != len(targets):
        raise ExtrinsicRefused("DuplicateUids", f"a UID appears twice in {list(targets)}")
    unknown = sorted(set(targets) - known)
    if unknown:
        raise ExtrinsicRefused("UidVecContainInvalidOne", f"UIDs {unknown} are not registered")
    if any(not 0 <= value <= U16_MAX for value in values):
        raise ExtrinsicRefused("InvalidValue", f"a weight in {list(values)} is not within 0..{U16_MAX}")
    own_only = list(targets) == [neuron.uid]
    if not own_only and len(targets) < parameters.min_allowed_weights:
        raise ExtrinsicRefused(
            "WeightVecLengthIsLow",
            f"{len(targets)} weights, at least {parameters.min_allowed_weights} needed",
        )
    top = max(values, default=0)
    if top == 0:
        return []
    if not own_only and top * U16_MAX > parameters.max_weight_u16 * sum(values):
        raise ExtrinsicRefused(
            "MaxWeightExceeded",
            f"the largest weight has a share of {top / sum(values):.4f}, "
            f"{parameters.max_weight_u16 / U16_MAX:.4f} is allowed",
        )
    return [(target, round(value * U16_MAX / top)) for target, value in zip(targets, values, strict=True)]


def raw_values(field: Any) -> list[Any]:
    """Payloads of one decoded commitment field: the chain nests them as lists of {variant: hex}."""
    if isinstance(field, dict):
        return list(field.values())
    if isinstance(field, list):
        return [value for item in field for value in raw_values(item)]
    return []


def check_commitment(fields: Sequence[Any]) -> None:
    """Refuse a commitment whose payload is larger than the chain stores."""
    size = sum(len(str(value)) // 2 - 1 for field in fields for value in raw_values(field))
    if size > COMMITMENT_BYTES_MAX:
        raise ExtrinsicRefused(
            "SpaceLimitExceeded", f"commitment has {size} bytes, {COMMITMENT_BYTES_MAX} are allowed"
        )
