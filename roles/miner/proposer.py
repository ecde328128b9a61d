"""Proposers that need nothing but files: the shipped kernels, and a folder of the operator's own."""

import asyncio
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kernels.export import VARIANTS, export_files
from kernels.presets import DEFAULT, PRESETS, Preset
from node.clock import Clock
from node.logs import get_logger
from protocol.errors import ConfigError
from protocol.forks import TARGET_FILES
from roles.miner.candidate import Candidate

MAX_FILE_BYTES: Final = 2**20
WATCH_S: Final = 1.0

_log = get_logger(__name__)


class ShippedProposer:
    """Walks the shipped kernels, each as known to suit some GPU."""

    def __init__(
        self, variants: Sequence[str], clock: Clock, presets: Sequence[Preset] = (DEFAULT, *PRESETS)
    ) -> None:
        check_variants(variants)
        self.rest = clock.sleep
        self._left = [(variant, preset) for preset in presets for variant in variants]
        self._seen: set[str] = set()

    async def propose(self) -> Candidate | None:
        """The next pair of kernel and parameters that gives other files than the ones before."""
        while self._left:
            variant, preset = self._left.pop(0)
            files = await asyncio.to_thread(export_files, variant, preset)
            candidate = Candidate(f"{variant} ({preset.gpu})", files, "shipped")
            if candidate.digest not in self._seen:
                self._seen.add(candidate.digest)
                return candidate
        return None


def check_variants(variants: Sequence[str]) -> None:
    """Raise ConfigError for a kernel that is not shipped, or for none."""
    if not variants:
        raise ConfigError(f"miner.variants is empty: name one or more of {', '.join(VARIANTS)}")
    for variant in variants:
        if variant not in VARIANTS:
            raise ConfigError(
                f"miner.variants names {variant!r}, which is not shipped: use {', '.join(VARIANTS)}"
            )


class FilesProposer:
    """Reads the operator's own kernels from a folder, again whenever they have changed."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder.expanduser()
        self._clock = clock
        self._last: str | None = None
        self._looked_at: object = None
        _check_kernel_folder(self._folder)

    async def propose(self) -> Candidate | None:
        """The folder's files, None when they are still those of the last call or are not all there."""
        self._looked_at = await asyncio.to_thread(_stamp, self._folder)
        try:
            files = await asyncio.to_thread(read_kernels, self._folder)
        except ConfigError as error:
            # Somebody is at work in the folder: what they leave behind is looked at the next time.
            _log.warning("kernel folder cannot be used now", reason=str(error))
            return None
        candidate = Candidate(self._folder.name, files, "files")
        if candidate.digest == self._last:
            return None
        self._last = candidate.digest
        return candidate

    async def rest(self, seconds: float) -> None:
        """Wait, but not longer than until the folder has changed and stayed so for a moment."""
        ends = self._clock.monotonic() + seconds
        before = self._looked_at
        while (left_s := ends - self._clock.monotonic()) > 0:
            await self._clock.sleep(min(WATCH_S, left_s))
            now = await asyncio.to_thread(_stamp, self._folder)
            if now == before != self._looked_at:
                return
            before = now


def _stamp(folder: Path) -> object:
    """What changes when somebody saves a file."""
    stamps = []
    for path in sorted(folder.glob("*.py")):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            stamps.append((path.name, status.st_mtime_ns, status.st_size))
    return stamps


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
