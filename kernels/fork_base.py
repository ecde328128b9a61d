"""The cut of the pinned fla-core on which every submission runs: what a kernel may lean on, no more."""

import importlib.metadata
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError

_COPIED: Final = ("backends.py", "utils", "ops/utils")
_FORBIDDEN: Final = ("gla", "kda")

_STUB = '''"""Stands where fla.ops.{name} was: submissions may not use it."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def forbidden(*args, **kwargs):
        raise ImportError(f"fla.ops.{name}.{{name}} is forbidden: a submission must bring its own kernels")

    return forbidden
'''


def write_fla_base(dest: Path) -> None:
    """Lay out `fla/` of the installed fla-core under `dest`, cut to utilities, without importing it.

    `fla/__init__.py` holds the version alone and `fla/ops/__init__.py` is empty: the originals import every
    operator. Whatever is imported from `fla.ops.gla` and `fla.ops.kda` raises ImportError when called.

    Raises:
        ConfigError: fla-core is not installed.
    """
    source = _installed_fla()
    package = dest / "fla"
    (package / "ops").mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        _copy(source / name, package / name)
    version = importlib.metadata.version("fla-core")
    (package / "__init__.py").write_text(f'__version__ = "{version}"\n')
    (package / "ops" / "__init__.py").write_text("")
    for name in _FORBIDDEN:
        stub = package / "ops" / name
        stub.mkdir(exist_ok=True)
        (stub / "__init__.py").write_text(_STUB.format(name=name))


def forbidden_sources() -> dict[str, str]:
    """Return the texts of the forbidden modules of the installed fla-core, by module.

    Raises:
        ConfigError: fla-core is not installed.
    """
    ops = _installed_fla() / "ops"
    return {
        f"fla.ops.{name}.{path.stem}": path.read_text(encoding="utf-8")
        for name in _FORBIDDEN
        for path in sorted((ops / name).glob("*.py"))
    }


def _installed_fla() -> Path:
    spec = find_spec("fla")
    if spec is None or spec.origin is None:
        raise ConfigError("fla-core is not installed: run `make install`")
    return Path(spec.origin).parent


def _copy(source: Path, dest: Path) -> None:
    if source.is_dir():
        shutil.copytree(
            source, dest, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"), dirs_exist_ok=True
        )
    else:
        shutil.copyfile(source, dest)
