"""The places that settings come from, each read into dotted keys with their origins."""

import io
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream
from pydantic import SecretStr
from pydantic_settings import BaseSettings, TomlConfigSettingsSource

from node.settings_names import (
    PREFIX,
    PROCESS_NAMES,
    env_name,
    env_names,
    field_of,
    is_secret,
    keys,
    sections,
    suggest,
)
from protocol.errors import ConfigError

REDACTED = "********"
MAX_SHOWN_CHARS = 100


@dataclass(slots=True)
class Layer:
    """What one place says: values and origins by dotted key, and variables that are no settings."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)

    def set(self, key: str, value: Any, origin: str) -> None:
        """Remember a value and where it came from."""
        self.values[key] = value
        self.origins[key] = origin


def show_raw(value: Any) -> str:
    """A value as config.toml would hold it, on one line and not too long."""
    if isinstance(value, SecretStr):
        return REDACTED
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN_CHARS else text[:MAX_SHOWN_CHARS] + "..."


def read_command_line(overrides: Mapping[str, object]) -> Layer:
    """Overrides by dotted key; strings are read as environment variables are."""
    layer = Layer()
    for key, value in overrides.items():
        if field_of(key) is None:
            shown = REDACTED if is_secret(key) else show_raw(value)
            raise ConfigError(f"command line: unknown key {key} = {shown}{suggest(key, keys())}")
        _refuse_secret(key, value, "command line", "anybody on this machine can read a command line")
        raw = _from_text(key, value, f"command line: {key}") if isinstance(value, str) else value
        layer.set(key, raw, "command line")
    return layer


def read_environment(env: Mapping[str, str]) -> Layer:
    """Known variables of the environment; an unknown one that starts with QUASAR_ is an error."""
    return _read_variables(env, "environment")


def read_env_file(path: Path, *, must_exist: bool) -> Layer:
    """Known variables of a .env file; those of other programs are kept apart, in `others`."""
    text = _read_text(path, must_exist)
    variables: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text or "")):
        if binding.error:
            # The line itself is not shown: it may hold a secret.
            raise ConfigError(f"{path}: line {binding.original.line} is not NAME=value: correct it")
        if binding.key is not None:
            variables[binding.key] = binding.value or ""
    return _read_variables(variables, path.name)


def _read_variables(variables: Mapping[str, str], place: str) -> Layer:
    layer = Layer()
    known = env_names()
    for name, value in variables.items():
        if name not in known and name.startswith(PREFIX) and name not in PROCESS_NAMES:
            shown = REDACTED if is_secret(name) else show_raw(value)
            raise ConfigError(f"{place}: unknown variable {name} = {shown}{suggest(name, known)}")
        if name not in known:
            layer.others[name] = value
    for name, key in known.items():
        value = variables.get(name, "")
        # Empty means not set: `GITHUB_TOKEN=` is how people leave a line blank.
        if value.strip():
            layer.set(key, _from_text(key, value.strip(), f"{place}: {name}"), f"{place} {name}")
    return layer


def _from_text(key: str, text: str, place: str) -> Any:
    """A variable's text for a field: lists as JSON or with commas, the rest is pydantic's to convert."""
    info = field_of(key)
    annotation = info.annotation if info is not None else None
    if not str(annotation).startswith("tuple["):
        return text
    if text.startswith("["):
        try:
            return json.loads(text)
        except ValueError as error:
            raise ConfigError(
                f"{place} = {show_raw(text)}: not a JSON list: write one, or values with commas"
            ) from error
    return [part.strip() for part in text.split(",") if part.strip()]


class _NoModel(BaseSettings):
    """What pydantic-settings wants to know about a model; nothing, since the file is read whole."""


def read_toml(path: Path, *, must_exist: bool) -> Layer:
    """The tables of config.toml; unknown tables and keys are errors."""
    if _read_text(path, must_exist) is None:
        return Layer()
    try:
        tables: dict[str, Any] = TomlConfigSettingsSource(_NoModel, toml_file=path)()
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    layer = Layer()
    for section, table in tables.items():
        if section not in sections():
            shown = (
                "" if isinstance(table, dict) else f" = {REDACTED if is_secret(section) else show_raw(table)}"
            )
            raise ConfigError(f"{path}: unknown table [{section}]{shown}{suggest(section, sections())}")
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {section} = {show_raw(table)}: must be a table: write [{section}]")
        for name, value in table.items():
            key = f"{section}.{name}"
            if field_of(key) is None:
                raise ConfigError(_unknown_toml_key(path, section, name, value))
            _refuse_secret(key, value, path.name, "settings files get copied and committed")
            layer.set(key, value, path.name)
    return layer


def _refuse_secret(key: str, value: object, place: str, reason: str) -> None:
    """Secrets come from the environment or .env alone; a database address is one when it holds a password."""
    if is_secret(key) and not (key == "api.database_url" and "@" not in str(value)):
        section, _, name = key.partition(".")
        raise ConfigError(
            f"{place}: [{section}] {name} is a secret and {reason}: put {env_name(key)} into .env"
        )


def _unknown_toml_key(path: Path, section: str, name: str, value: Any) -> str:
    shown = REDACTED if is_secret(name) else show_raw(value)
    siblings = [key.partition(".")[2] for key in keys() if key.startswith(f"{section}.")]
    hint = suggest(name, siblings)
    if not hint:
        elsewhere = [key for key in keys() if key.partition(".")[2] == name]
        hint = f": it belongs to [{elsewhere[0].partition('.')[0]}]" if elsewhere else ""
    return f"{path.name}: unknown key [{section}] {name} = {shown}{hint}"


def _read_text(path: Path, must_exist: bool) -> str | None:
    """The file's text; None when it does not exist and need not."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        if must_exist:
            raise ConfigError(f"file {path} does not exist: create it or name another one") from error
        return None
    except UnicodeDecodeError as error:
        raise ConfigError(f"file {path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ConfigError(f"file {path} cannot be read: {error.strerror}") from error
