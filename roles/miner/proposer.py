"""Where candidates come from."""

import asyncio
import functools
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kernels.export import VARIANTS, export_files
from kernels.launch import Launch
from kernels.presets import DEFAULT, PRESETS, Preset
from node.logs import get_logger
from node.processes import end_process, module_argv, start_process, worker_environment
from node.settings_model import MinerSection
from protocol.errors import ConfigError
from protocol.forks import TARGET_FILES

MAX_FILE_BYTES = 2**20
TUNED_TIMEOUT_S = 60.0

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


async def nothing_tuned() -> Launch | None:
    """There are no parameters for this GPU."""
    return None


class ShippedProposer:
    """Walks the shipped kernels: with what `quasar-node tune` found, then as known to suit some GPU."""

    def __init__(
        self,
        variants: Sequence[str],
        presets: Sequence[Preset] = (DEFAULT, *PRESETS),
        tuned: Callable[[], Awaitable[Launch | None]] = nothing_tuned,
    ) -> None:
        for variant in variants:
            if variant not in VARIANTS:
                raise ConfigError(
                    f"miner.variants names {variant!r}, which is not shipped: use {', '.join(VARIANTS)}"
                )
        self._variants = variants
        self._left = [(variant, preset) for preset in presets for variant in variants]
        self._tuned = tuned
        self._seen: set[str] = set()

    async def propose(self) -> Candidate | None:
        """The next pair of kernel and parameters that gives other files than the ones before.

        What is tuned while the miner runs comes at the next call.
        """
        launch = await self._tuned()
        if launch is not None:
            found = await self._unseen(f"{self._variants[0]} (tuned)", self._variants[0], launch=launch)
            if found is not None:
                return found
        while self._left:
            variant, preset = self._left.pop(0)
            found = await self._unseen(f"{variant} ({preset.gpu})", variant, preset)
            if found is not None:
                return found
        return None

    async def _unseen(
        self, name: str, variant: str, preset: Preset | None = None, *, launch: Launch | None = None
    ) -> Candidate | None:
        candidate = Candidate(name, await asyncio.to_thread(export_files, variant, preset, launch=launch))
        if candidate.digest in self._seen:
            return None
        self._seen.add(candidate.digest)
        return candidate


async def find_tuned(device: str, length: int) -> Launch | None:
    """Ask a process of its own, which may import torch, what `quasar-node tune` found for this GPU."""
    command = module_argv("kernels.tuned", device, str(length))
    errors = b""
    process = await start_process(command, worker_environment(), line_limit_bytes=MAX_FILE_BYTES)
    try:
        async with asyncio.timeout(TUNED_TIMEOUT_S):
            printed, errors = await process.communicate()
        found = json.loads(printed)
    except (TimeoutError, ValueError) as error:
        reason = errors.decode(errors="replace")[-500:] if errors else type(error).__name__
        _log.warning("tuned parameters cannot be read", reason=reason)
        return None
    finally:
        await end_process(process)
    return None if found is None else Launch(**found)


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


def open_proposer(settings: MinerSection, device: str) -> Proposer:
    """The proposer that the settings name, for kernels on `device`. Raises ConfigError."""
    if settings.proposer == "shipped":
        if device == "cpu":
            return ShippedProposer(settings.variants)
        tuned = functools.partial(find_tuned, device, settings.target_sequence_length)
        return ShippedProposer(settings.variants, tuned=tuned)
    if settings.kernel_dir is None:
        raise ConfigError("miner.proposer is 'files' but miner.kernel_dir names no folder: set it")
    return FilesProposer(settings.kernel_dir)
