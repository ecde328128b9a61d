"""Folders that evaluations work in: in use for as long as the process that made them lives, then removed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FOLDER_PREFIX: Final = "run-"
OF_EARLIER_BUILDS: Final = "objects.git"
"""Where they kept fetched commits."""


@contextmanager
def own_folder(work_dir: Path) -> Iterator[Path]:
    """A new folder whose lock says, for as long as this process lives, that it is in use."""
    with _locked(work_dir):
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=work_dir))
        lock = _lock_folder(folder, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def remove_left_folders(work_dir: Path) -> None:
    """Remove what evaluations that were killed left behind, and nothing of those that are running."""
    with _locked(work_dir):
        for folder in work_dir.glob(f"{FOLDER_PREFIX}*"):
            try:
                lock = _lock_folder(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, FileNotFoundError):
                continue
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
        shutil.rmtree(work_dir / OF_EARLIER_BUILDS, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = _lock_folder(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _lock_folder(folder: Path, how: int) -> int:
    """Return the descriptor that holds a folder's lock; BlockingIOError with LOCK_NB when it is taken."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
