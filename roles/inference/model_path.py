"""A model's name, or the folder where it lies."""

import os
from pathlib import Path

from protocol.errors import ConfigError


def check_model_path(name: str) -> str:
    """The name as given, or the absolute path when it is one.

    Raises ConfigError when it is a path and there is no model.
    """
    if not name.startswith(("/", "./", "../", "~")):
        return name
    path = Path(name).expanduser().absolute()
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"reference_model {name!r} is no folder with a config.json: name a model or its folder"
        )
    return os.fspath(path)
