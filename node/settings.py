"""Settings from five places in order of precedence: command line, environment, .env, config.toml, defaults.

The loader remembers where every value came from, and refuses what the places below it would pass over in
silence: unknown keys, named files that do not exist, numbers that are not finite.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError

from node.settings_arguments import add_arguments, overrides_from
from node.settings_model import Settings
from node.settings_names import is_secret, keys
from node.settings_sources import (
    Layer,
    read_command_line,
    read_env_file,
    read_environment,
    read_toml,
    show_raw,
)
from protocol.errors import ConfigError

__all__ = ["LoadedSettings", "add_arguments", "describe", "load_settings", "overrides_from"]

DEFAULT_CONFIG_FILE = Path("config.toml")
DEFAULT_ENV_FILE = Path(".env")
DEFAULT_ORIGIN = "default"
REDACTED = "********"
WORKER_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF",)
"""Variables of .env that are not settings but reach the GPU workers."""


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, the origin of each dotted key, and variables for GPU workers that .env held."""

    settings: Settings
    origins: dict[str, str]
    worker_env: dict[str, str] = field(default_factory=dict)


def load_settings(
    argv_overrides: Mapping[str, object],
    *,
    config_file: Path | None,
    env: Mapping[str, str],
    env_file: Path | None = DEFAULT_ENV_FILE,
) -> LoadedSettings:
    """Read all places and check the whole.

    `argv_overrides` maps dotted keys ("miner.target_sequence_length") to values. `config_file` None reads
    `config.toml` of the current folder when there is one; a file that is named must exist. `env_file` None
    reads none. Raises ConfigError with place, key and value.
    """
    toml_file, must_exist = (DEFAULT_CONFIG_FILE, False) if config_file is None else (config_file, True)
    env_file_layer = Layer()
    if env_file is not None:
        env_file_layer = read_env_file(env_file, must_exist=env_file != DEFAULT_ENV_FILE)
    layers = [
        read_command_line(argv_overrides),
        read_environment(env),
        env_file_layer,
        read_toml(toml_file, must_exist=must_exist),
    ]
    values: dict[str, Any] = {}
    origins = dict.fromkeys(keys(), DEFAULT_ORIGIN)
    for layer in reversed(layers):
        values |= layer.values
        origins |= layer.origins
    settings = _validate(values, origins)
    worker_env = {
        name: env_file_layer.others[name] for name in WORKER_VARIABLES if name in env_file_layer.others
    }
    return LoadedSettings(settings, origins, worker_env)


def _validate(values: Mapping[str, Any], origins: Mapping[str, str]) -> Settings:
    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    try:
        settings = Settings.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(_sentences(error, values, origins)) from error
    for key, value in _leaves(settings):
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            shown = show_raw(values.get(key, value))
            raise ConfigError(f"{_place(key, origins)} = {shown}: must be a finite number")
    return _expand_home(settings)


def _sentences(error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    sentences = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"][:2])
        shown = REDACTED if is_secret(key) else show_raw(values.get(key))
        message = problem["msg"]
        sentences.append(f"{_place(key, origins)} = {shown}: {message[:1].lower()}{message[1:]}")
    return "; ".join(sentences)


def _place(key: str, origins: Mapping[str, str]) -> str:
    section, _, name = key.partition(".")
    return f"{origins.get(key, DEFAULT_ORIGIN)}: [{section}] {name}"


def _leaves(settings: Settings) -> Iterator[tuple[str, Any]]:
    for key in keys():
        section, _, name = key.partition(".")
        yield key, getattr(getattr(settings, section), name)


def _expand_home(settings: Settings) -> Settings:
    """`~` in any path means the user's home, as in a shell; the settings are otherwise as they were."""
    sections: dict[str, BaseModel] = {}
    for key, value in _leaves(settings):
        if isinstance(value, Path) and str(value).startswith("~"):
            section, _, name = key.partition(".")
            current = sections.get(section, getattr(settings, section))
            try:
                expanded = value.expanduser()
            except RuntimeError as error:
                raise ConfigError(f"[{section}] {name} = {str(value)!r}: {error}") from error
            sections[section] = current.model_copy(update={name: expanded})
    return settings.model_copy(update=sections) if sections else settings


def describe(loaded: LoadedSettings) -> list[tuple[str, str, str]]:
    """Every key with its value, secrets redacted, and its origin, in the order of config.toml."""
    rows = []
    for key, value in _leaves(loaded.settings):
        rows.append((key, _show_value(value), loaded.origins.get(key, DEFAULT_ORIGIN)))
    return rows


def _show_value(value: Any) -> str:
    if value is None:
        return "(not set)"
    if isinstance(value, SecretStr):
        return REDACTED
    return show_raw(list(value) if isinstance(value, tuple) else value)
