"""The files of commits that were judged: a repository that is deleted afterwards changes nothing."""

import contextlib
import hashlib
import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from protocol.types import CommitHash

QUOTA_BYTES: Final = 2**30
DIGEST_BYTES: Final = 32
"""Of SHA-256, before each archive: not every damage shows in an archive itself."""


class KeptFiles:
    """An archive for each commit; what was used longest ago goes first when they outgrow their quota."""

    def __init__(self, folder: Path, *, quota_bytes: int = QUOTA_BYTES) -> None:
        self._folder = folder
        self._quota_bytes = quota_bytes

    def read(self, commit_hash: CommitHash) -> dict[str, bytes] | None:
        """Return name -> content as it was kept; None when it was not, or is no longer whole."""
        path = self._path(commit_hash)
        try:
            kept = path.read_bytes()
        except FileNotFoundError:
            return None
        digest, packed = kept[:DIGEST_BYTES], kept[DIGEST_BYTES:]
        if hashlib.sha256(packed).digest() != digest:
            # A disk that lost some of it: a miner must not answer for that.
            path.unlink(missing_ok=True)
            return None
        # Another referee, short of room, may have removed it just now; what was read is whole all the same.
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    def keep(self, commit_hash: CommitHash, files: Mapping[str, bytes]) -> None:
        """Write the files down, unless they are there."""
        path = self._path(commit_hash)
        if path.exists():
            return
        self._folder.mkdir(mode=0o700, exist_ok=True)
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in files.items():
                # Without a date: the same files make the same archive.
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
        # Of this process alone: another referee may keep the same commit.
        draft = path.with_suffix(f".{os.getpid()}")
        with draft.open("wb") as file:
            file.write(hashlib.sha256(packed.getvalue()).digest() + packed.getvalue())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        self._make_room()

    def _path(self, commit_hash: CommitHash) -> Path:
        return self._folder / f"{commit_hash}.kept"

    def _make_room(self) -> None:
        """Remove what was used longest ago, drafts of referees that were killed among it."""
        found = []
        for path in self._folder.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        left = self._quota_bytes
        for _, size, path in sorted(found, reverse=True):
            left -= size
            if left < 0:
                path.unlink(missing_ok=True)
