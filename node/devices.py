"""Where tensors may live on this machine, found out without loading torch."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError

LIST_TIMEOUT_S: Final = 20.0

_DEVICE = re.compile(r"(auto|cpu|cuda)|cuda:([0-9]{1,2})")
_NODE = re.compile(r"nvidia[0-9]+")


def resolve_device(device: str, *, dev: Path = Path("/dev"), environ: Mapping[str, str] = os.environ) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:<n>` into `cpu` or `cuda:<n>`.

    `auto` is the first GPU, or the CPU without one. Raises ConfigError for another word, for `cuda` without
    a GPU and for a GPU that is not there.
    """
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise ConfigError(f"device {device!r} is unknown: use auto, cpu, cuda or cuda:<n>")
    if device == "cpu":
        return "cpu"
    count = count_gpus(dev=dev, environ=environ)
    if device == "auto":
        return "cuda:0" if count else "cpu"
    if count == 0:
        hidden = environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
        raise ConfigError(
            f'device "{device}" but no CUDA GPU found{why}: set DEVICE=cpu, or install the NVIDIA driver'
        )
    index = int(match[2] or 0)
    if index >= count:
        raise ConfigError(
            f'device "{device}" but only {count} CUDA GPU{"s" if count > 1 else ""} found: '
            f"the last one is cuda:{count - 1}"
        )
    return f"cuda:{index}"


def count_gpus(*, dev: Path = Path("/dev"), environ: Mapping[str, str] = os.environ) -> int:
    """Count the NVIDIA GPUs that a process with this environment may use."""
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not _chosen(visible):
        return 0
    present = sum(1 for node in dev.glob("nvidia*") if _NODE.fullmatch(node.name)) or _listed(environ)
    return present if visible is None else min(present, len(_chosen(visible)))


def gpu_file(
    uuid: str, *, dev: Path = Path("/dev"), proc: Path = Path("/proc/driver/nvidia/gpus")
) -> Path | None:
    """Return the device file of the GPU with this UUID (`GPU-...`); None when the driver does not tell.

    CUDA's number of a GPU need not be that of its file: it counts what it may see, in an order of its own.
    """
    for information in proc.glob("*/information"):
        pairs = (line.partition(":") for line in information.read_text().splitlines())
        fields = {name.strip(): value.strip() for name, _, value in pairs}
        if fields.get("GPU UUID") == uuid:
            file = dev / f"nvidia{fields.get('Device Minor')}"
            return file if file.exists() else None
    return None


def _chosen(visible: str) -> list[str]:
    """The GPUs that CUDA_VISIBLE_DEVICES names; CUDA stops reading at the first entry that is none."""
    chosen: list[str] = []
    for entry in visible.split(","):
        name = entry.strip()
        if not name or name.startswith("-"):
            break
        chosen.append(name)
    return chosen


def _listed(environ: Mapping[str, str]) -> int:
    """How many GPUs nvidia-smi lists: under WSL there are no /dev/nvidia<n>."""
    command = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if command is None:
        return 0
    try:
        result = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=LIST_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        # A driver that cannot even list its devices has none to offer.
        return 0
    return sum(line.startswith("GPU ") for line in result.stdout.splitlines())
