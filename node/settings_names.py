"""The names of settings: dotted keys, their environment variables, and the nearest name to a misspelt one."""

import difflib
from collections.abc import Iterable
from functools import cache
from typing import get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from node.settings_model import Settings

PREFIX = "QUASAR_"
SEPARATOR = "__"
SEED_NAMES = {
    "VALIDATOR_API_URL": "api.url",
    "DATABASE_URL": "api.database_url",
    "NETUID": "chain.netuid",
    "SUBTENSOR_NETWORK": "chain.network",
    "WALLET_PATH": "wallet.path",
    "WALLET_MINER_NAME": "wallet.miner_name",
    "WALLET_VALIDATOR_NAME": "wallet.validator_name",
    "WALLET_HOTKEY": "wallet.hotkey",
    "WALLET_PASSWORD": "wallet.password",
    "TARGET_SEQUENCE_LENGTH": "miner.target_sequence_length",
    "AGENT_ITERATIONS": "miner.agent_iterations",
    "OPTIMIZATION_INTERVAL": "miner.optimization_interval_s",
    "GITHUB_TOKEN": "miner.github_token",
    "GITHUB_USERNAME": "miner.github_username",
    "AGENT_API_KEY": "agent.api_key",
    "MINER_INFERENCE_PORT": "inference.port",
    "REFERENCE_MODEL": "inference.reference_model",
    "DEVICE": "node.device",
    "QUASAR_JOURNAL_KEY": "node.journal_key",
}
"""Variables without a section in their name, most of them older than this program."""
PROCESS_NAMES = frozenset({"QUASAR_PARENT_PID"})
"""QUASAR_ variables that processes of this program give to each other; not settings."""


@cache
def _fields() -> dict[str, FieldInfo]:
    fields = {}
    for section, info in Settings.model_fields.items():
        model = info.annotation
        assert model is not None
        for name, inner in model.model_fields.items():
            fields[f"{section}.{name}"] = inner
    return fields


def keys() -> Iterable[str]:
    """Every dotted key, in the order of the model."""
    return _fields().keys()


def sections() -> Iterable[str]:
    """Every table."""
    return Settings.model_fields.keys()


def field_of(key: str) -> FieldInfo | None:
    """What the model says about a key, None when there is none of that name."""
    return _fields().get(key)


def is_secret(key: str) -> bool:
    """True when the value must not be shown; also for unknown keys that sound like it."""
    info = field_of(key)
    if info is not None:
        return info.annotation is SecretStr or SecretStr in get_args(info.annotation)
    return any(part in key.lower() for part in ("password", "token", "secret", "database_url", "journal_key"))


def env_name(key: str) -> str:
    """The variable that sets a dotted key: QUASAR_<SECTION>__<KEY>."""
    section, _, name = key.partition(".")
    return f"{PREFIX}{section.upper()}{SEPARATOR}{name.upper()}"


def seed_name(key: str) -> str | None:
    """The variable without a section for a dotted key, when it has one."""
    return next((name for name, target in SEED_NAMES.items() if target == key), None)


@cache
def env_names() -> dict[str, str]:
    """Variable -> dotted key; a QUASAR_<SECTION>__<KEY> comes after the short name, over which it wins."""
    return SEED_NAMES | {env_name(key): key for key in keys()}


def suggest(name: str, known: Iterable[str]) -> str:
    """ ": did you mean X?" for the nearest known name, "" when none is near."""
    candidates = list(known)
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if not near:
        # A name that was cut short or has lost its unit.
        near = [candidate for candidate in candidates if len(name) >= 4 and candidate.startswith(name)][:1]
    return f": did you mean {near[0]}?" if near else ""
