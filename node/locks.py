"""Locks between processes: flock is released by the kernel when its holder dies, however it dies."""

import errno
import fcntl
import hashlib
import os
import re
import stat
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from node.devices import physical_gpu
from protocol.errors import ConfigError, DeviceBusy

POLL_S = 0.1


class FileLock:
    """A lock on a file, held from `acquire` (or `with`) until `release` or the process's end.

    `what` names the locked thing in messages; `timeout_s` is how long `acquire` waits (it blocks the thread).
    Exclusive, or `is_shared` by all who ask for it so. `note` is a line that others may read in the file.
    Raises DeviceBusy naming the holder's process, ConfigError when the file cannot be opened.
    """

    def __init__(
        self, path: Path, what: str, *, timeout_s: float = 0.0, is_shared: bool = False, note: str = ""
    ) -> None:
        self._path = path
        self._what = what
        self._timeout_s = timeout_s
        self._is_shared = is_shared
        self._note = note
        self._descriptor: int | None = None

    @property
    def is_held(self) -> bool:
        """True between a successful acquire and its release."""
        return self._descriptor is not None

    def acquire(self) -> None:
        """Take the lock or raise DeviceBusy."""
        if self._descriptor is not None:
            raise DeviceBusy(f"{self._what} is locked by this process already")
        descriptor = _open_lock_file(self._path)
        deadline = time.monotonic() + self._timeout_s
        try:
            while not _try_lock(descriptor, is_shared=self._is_shared):
                if time.monotonic() >= deadline:
                    raise DeviceBusy(self._busy_sentence(descriptor))
                time.sleep(min(POLL_S, max(0.0, deadline - time.monotonic())))
            if not self._is_shared:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n{self._note}".encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def _busy_sentence(self, descriptor: int) -> str:
        text = os.pread(descriptor, 32, 0).decode("ascii", errors="replace").partition("\n")[0].strip()
        holder = f"process {text}" if text.isdigit() else "another process"
        waited = f" (waited {self._timeout_s:g} s)" if self._timeout_s else ""
        return f"{self._what} is in use by {holder}{waited}: stop it first ({self._path})"

    def release(self) -> None:
        """Give the lock back; nothing happens when it is not held."""
        if self._descriptor is not None:
            # The file stays: unlinking it would let two processes lock two files of one name.
            if not self._is_shared:
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _open_lock_file(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        try:
            # Without O_CREAT first: the kernel may forbid that flag on other users' files in shared folders.
            return os.open(path, flags)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, flags | os.O_CREAT, 0o666)
            if _is_shared(path.parent):
                os.fchmod(descriptor, 0o666)
            return descriptor
    except OSError as error:
        raise ConfigError(f"lock file {path} cannot be opened: {error.strerror}") from error


def _is_shared(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IWOTH)


def _try_lock(descriptor: int, *, is_shared: bool) -> bool:
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def lock_folder(env: Mapping[str, str] = os.environ) -> Path:
    """The machine's folder for device locks: `$XDG_RUNTIME_DIR`, else one that all users share.

    Raises ConfigError when somebody has put a link or a file in its place.
    """
    runtime = env.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir() and os.access(runtime, os.W_OK):
        folder = Path(runtime) / "quasar-node-locks"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder
    folder = Path(tempfile.gettempdir()) / "quasar-node-locks"
    try:
        folder.mkdir(mode=0o777)
        # After mkdir, because the umask takes bits away; sticky, so that nobody removes another's file.
        folder.chmod(0o1777)
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise ConfigError(f"{folder} must be a folder, not a file or a link: remove it") from None
    return folder


def device_lock(device: str, *, timeout_s: float, env: Mapping[str, str] = os.environ) -> FileLock:
    """A machine-wide lock on a compute device ("cpu", "cuda:0"), to be used in a `with` statement.

    Waits up to `timeout_s`, blocking: for the referee's process, not for an event loop. The visible GPU is
    what counts: `cuda:0` under CUDA_VISIBLE_DEVICES=3 locks GPU 3.
    """
    return FileLock(device_lock_path(device, env), f"device {device}", timeout_s=timeout_s)


def device_lock_path(device: str, env: Mapping[str, str] = os.environ) -> Path:
    """The file of a device's lock; what else belongs to the device is beside it."""
    gpu = physical_gpu(device, env)
    physical = device if gpu is None else f"cuda:{gpu}"
    readable = re.sub(r"[^A-Za-z0-9]+", "-", physical).strip("-")[:40]
    digest = hashlib.sha256(physical.encode()).hexdigest()[:8]
    return lock_folder(env) / f"{readable}-{digest}.lock"
