"""Which compute device a setting means, found without importing torch."""

from pathlib import Path

from protocol.errors import ConfigError


def has_nvidia_gpu() -> bool:
    """True when the driver shows at least one GPU."""
    return bool(gpu_device_files())


def gpu_device_files() -> list[Path]:
    """Return the device files of the GPUs, in the driver's order."""
    numbered = (path for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit())
    return sorted(numbered, key=lambda path: int(path.name[6:]))


def resolve_device(device: str) -> str:
    """Return `cpu` or `cuda:<n>` for `auto`, `cpu`, `cuda` or `cuda:<n>`.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if device == "cpu":
        return "cpu"
    if device == "auto":
        return "cuda:0" if has_nvidia_gpu() else "cpu"
    if not has_nvidia_gpu():
        raise ConfigError(
            f"node.device = {device!r}, but no NVIDIA GPU was found: install the driver, or set DEVICE=cpu "
            "(the CPU scores on the local chain only)"
        )
    return device if ":" in device else "cuda:0"
