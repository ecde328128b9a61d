"""Where tensors may live on this machine, found out without loading torch."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError, DeviceMissing

LIST_TIMEOUT_S: Final = 20.0

_DEVICE = re.compile(r"(auto|cpu|cuda)|cuda:([0-9]{1,2})")
_NODE = re.compile(r"nvidia[0-9]+")


def resolve_device(device: str, *, dev: Path = Path("/dev"), environ: Mapping[str, str] = os.environ) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:<n>` into `cpu` or `cuda:<n>`.

    `auto` is the first GPU, or the CPU without one. Raises ConfigError for another word, DeviceMissing for
    `cuda` without a GPU and for a GPU that is not there.
    """
    match = _DEVICE.fullmatch(device)
    if match is None:
        raise ConfigError(f"device {device!r} is unknown: use auto, cpu, cuda or cuda:<n>")
    if device == "cpu":
        return "cpu"
    count = count_gpus(dev=dev, environ=environ)
    if device == "auto":
        return "cuda:0" if count else "cpu"
    index = int(match[2] or 0)
    name = f"cuda:{index}"
    if count == 0:
        hidden = environ.get("CUDA_VISIBLE_DEVICES")
        why = "" if hidden is None else f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
        raise DeviceMissing(
            name,
            f'device "{device}" but no CUDA GPU found{why}: set DEVICE=cpu, or install the NVIDIA driver',
        )
    if index >= count:
        raise DeviceMissing(
            name,
            f'device "{device}" but only {count} CUDA GPU{"s" if count > 1 else ""} found: '
            f"the last one is cuda:{count - 1}",
        )
    return name


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
    return sum(line.startswith("GPU ") for line in _ask_driver(command, "-L"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """What the driver says of a GPU; None where it says nothing."""

    index: int
    uuid: str
    name: str
    temperature_c: float | None
    utilization_percent: float | None
    memory_used_mib: float | None
    memory_total_mib: float | None


def list_gpus(*, environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """Every GPU of the machine as nvidia-smi sees it; none without nvidia-smi or a driver that answers."""
    command = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if command is None:
        return []
    query = "index,uuid,name,temperature.gpu,utilization.gpu,memory.used,memory.total"
    gpus = []
    for line in _ask_driver(command, f"--query-gpu={query}", "--format=csv,noheader,nounits"):
        values = [value.strip() for value in line.split(",")]
        if len(values) == 7 and values[0].isdigit():
            figures = [_number(value) for value in values[3:]]
            gpus.append(
                Gpu(
                    index=int(values[0]),
                    uuid=values[1],
                    name=values[2],
                    temperature_c=figures[0],
                    utilization_percent=figures[1],
                    memory_used_mib=figures[2],
                    memory_total_mib=figures[3],
                )
            )
    return gpus


def device_name(device: str, *, environ: Mapping[str, str] = os.environ) -> str:
    """The GPU's name for `cuda:<n>`, the device itself where the driver does not tell."""
    gpu = physical_gpu(device, environ)
    return next((one.name for one in list_gpus(environ=environ) if gpu in (str(one.index), one.uuid)), device)


def physical_gpu(device: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """The machine's number or UUID for `cuda:<n>`, which CUDA_VISIBLE_DEVICES may rename; None for a CPU."""
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return None
    number = int(index) if index.isdigit() else 0
    visible = _chosen(environ.get("CUDA_VISIBLE_DEVICES", ""))
    return visible[number] if number < len(visible) else str(number)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _ask_driver(*command: str) -> list[str]:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=LIST_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        # A driver that cannot even list its devices has none to offer.
        return []
    return result.stdout.splitlines()
