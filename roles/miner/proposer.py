"""Where candidates come from."""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kernels.export import VARIANTS, export_files
from kernels.presets import DEFAULT, PRESETS, Preset
from node.logs import get_logger
from node.settings_model import MinerSection
from protocol.errors import ConfigError
from protocol.forks import TARGET_FILES

MAX_FILE_BYTES = 2**20

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Candidate:
    """The files of fla/ops/quasar that may be worth submitting."""

    name: str
    files: Mapping[str, str]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of names and texts: the same for the same files, whoever proposes them."""
        return hashlib.sha256(json.dumps(dict(self.files), sort_keys=True).encode()).hexdigest()


class Proposer(Protocol):
    """Suggests candidates, one at a time."""

    async def propose(self) -> Candidate | None:
        """The next candidate, None when there is nothing new at the moment."""


class ShippedProposer:
    """Walks the shipped kernels and the launch parameters known to suit some GPU."""

    def __init__(self, variants: Sequence[str], presets: Sequence[Preset] = (DEFAULT, *PRESETS)) -> None:
        for variant in variants:
            if variant not in VARIANTS:
                raise ConfigError(
                    f"miner.variants names {variant!r}, which is not shipped: use {', '.join(VARIANTS)}"
                )
        self._left = [(variant, preset) for preset in presets for variant in variants]
        self._seen: set[str] = set()

    async def propose(self) -> Candidate | None:
        """The next pair of kernel and preset that gives other files than the ones before."""
        while self._left:
            variant, preset = self._left.pop(0)
            files = await asyncio.to_thread(export_files, variant, preset)
            candidate = Candidate(f"{variant} ({preset.gpu})", files)
            if candidate.digest not in self._seen:
                self._seen.add(candidate.digest)
                return candidate
        return None


class FilesProposer:
    """Reads the operator's own kernels from a folder, again whenever they have changed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.expanduser()
        self._last: str | None = None
        _check_kernel_folder(self._folder)

    async def propose(self) -> Candidate | None:
        """The folder's files, None when they are still those of the last call or are not all there."""
        try:
            files = await asyncio.to_thread(read_kernels, self._folder)
        except ConfigError as error:
            # Somebody is at work in the folder: what they leave behind is looked at the next time.
            _log.warning("kernel folder cannot be used now", reason=str(error))
            return None
        candidate = Candidate(self._folder.name, files)
        if candidate.digest == self._last:
            return None
        self._last = candidate.digest
        return candidate


def read_kernels(folder: Path) -> dict[str, str]:
    """Every Python file directly in a folder, by name.

    Raises:
        ConfigError: one of the five target files is missing, or a file cannot be read.
    """
    _check_kernel_folder(folder)
    files = {}
    for path in sorted(folder.glob("*.py")):
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ConfigError(f"kernel file {path} is larger than {MAX_FILE_BYTES} bytes")
            files[path.name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"kernel file {path} cannot be read: {error}") from error
    return files


def _check_kernel_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ConfigError(f"miner.kernel_dir {str(folder)!r} is not a folder")
    missing = [name for name in TARGET_FILES if not (folder / name).is_file()]
    if missing:
        raise ConfigError(f"miner.kernel_dir {str(folder)!r} lacks {', '.join(missing)}")


def open_proposer(settings: MinerSection) -> Proposer:
    """The proposer that the settings name. Raises ConfigError."""
    if settings.proposer == "shipped":
        return ShippedProposer(settings.variants)
    if settings.kernel_dir is None:
        raise ConfigError("miner.proposer is 'files' but miner.kernel_dir names no folder: set it")
    return FilesProposer(settings.kernel_dir)
