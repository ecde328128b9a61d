"""Launch parameters that `quasar-node tune` has found, by GPU, shape and Triton version."""

import functools
import json
import os
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from kernels.backend import triton
from kernels.launch import Launch
from protocol.errors import ConfigError


def tuned_file() -> Path:
    """Return where the parameters are kept: in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "quasar-node" / "tuned.json"


def key_of(device: str, *, heads: int, dim: int, dtype: str, length: int) -> str:
    """Return the name of a shape on a device: lengths count by powers of two."""
    bucket = 1 << max(0, length - 1).bit_length()
    return f"{device} | triton {triton.__version__} | H={heads} D={dim} {dtype} T<={bucket}"


def tuned_launch(x: torch.Tensor, length: int) -> Launch | None:
    """Return what was found for tensors like x [B, T, H, D] and sequences of `length`, None without it."""
    return _found(x.device, x.shape[2], x.shape[3], x.dtype, (length - 1).bit_length() if length else 0)


@functools.lru_cache(maxsize=256)
def _found(device: torch.device, heads: int, dim: int, dtype: torch.dtype, bits: int) -> Launch | None:
    """Look a shape up once: short calls are made thousands of times a second."""
    known = _read(tuned_file())
    name = str(dtype).removeprefix("torch.")
    return known.get(key_of(device_name(device), heads=heads, dim=dim, dtype=name, length=1 << bits))


def tuned_for_entry(device: torch.device, length: int) -> Launch | None:
    """Return what was found for the shape that the competition times (8 heads of 64, bfloat16)."""
    key = key_of(device_name(device), heads=8, dim=64, dtype="bfloat16", length=length)
    return _read(tuned_file()).get(key)


def keep(key: str, launch: Launch, **evidence: object) -> None:
    """Add a result to the file, with what it rests on; the file is replaced as a whole.

    Raises ConfigError when the file that is there cannot be read.
    """
    path = tuned_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    known = load_entries(path)
    known[key] = {**asdict(launch), **evidence}
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
    forget()


def forget() -> None:
    """Read the file anew at the next call."""
    _read.cache_clear()
    _found.cache_clear()


def load_entries(path: Path) -> dict[str, dict[str, object]]:
    """Return key -> parameters and evidence; nothing when there is no file. Raises ConfigError."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        for entry in known.values():
            _launch_of(entry)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}: {error}; remove it") from error
    return dict(known)


def _launch_of(entry: dict[str, object]) -> Launch:
    return Launch(**{name: int(str(entry[name])) for name in Launch.__slots__})


@functools.cache
def _read(path: Path) -> dict[str, Launch]:
    """Read the file once for each process; one that cannot be read is said so, and counts for nothing."""
    try:
        return {key: _launch_of(entry) for key, entry in load_entries(path).items()}
    except ConfigError as error:
        warnings.warn(f"tuned parameters are not used: {error}", stacklevel=2)
        return {}


@functools.cache
def device_name(device: torch.device) -> str:
    """Return the GPU's name, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
