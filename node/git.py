"""git without configuration: fetch one commit and read its blobs.

Every call runs with an empty configuration, no hooks, no prompts and one allowed transport; a URL always
follows `--`. Nothing that a stranger wrote is ever checked out.
"""

import contextlib
import io
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from node.git_faults import PASSING, Fault, fault_of
from node.processes import output_tail
from protocol.errors import SourceRejected, SourceUnavailable
from protocol.forks import check_commit_hash
from protocol.types import CommitHash

FETCH_TIMEOUT_S: Final = 120.0
LOCAL_TIMEOUT_S: Final = 60.0
LOW_SPEED_BYTES_PER_S: Final = 1000
LOW_SPEED_S: Final = 60
"""A remote that sends less than that for so long is given up."""
MAX_FETCH_BYTES: Final = 256 * 2**20
MAX_BLOB_BYTES: Final = 1 * 2**20
MAX_BLOBS: Final = 256
MAX_LISTING_BYTES: Final = 4 * 2**20
"""Of what git says about one commit: a folder may have entries without end."""
MAX_ERRORS_BYTES: Final = 64 * 2**10
MAX_MEMORY_BYTES: Final = 2 * 2**30
"""Of each process of git: an object of some megabytes on the line may be gigabytes when it is inflated."""
_NOT_STARTED: Final = b"prlimit: "
"""How it begins what it says when there is no git or a limit is refused: nothing about a repository."""
REGULAR_FILE: Final = "100"
"""How the mode of a regular file begins. Its permissions follow, and do not matter: nothing that is read here
is executed, and on some file systems every file is committed as executable."""


class GitFailed(SourceRejected):
    """git ended with an error, for the reason that it and the remote told."""

    def __init__(self, sentence: str, fault: Fault) -> None:
        super().__init__(sentence)
        self.fault = fault


class GitUnavailable(GitFailed, SourceUnavailable):
    """git ended with an error that says nothing about the repository and may be over later."""


def git_environment(protocols: Sequence[str]) -> dict[str, str]:
    """Return the environment of a git process: no configuration, no prompt, only the given transports."""
    # The one variable by which Python, too, learns of a certificate authority of one's own.
    authorities = os.environ.get("SSL_CERT_FILE")
    trust = {} if authorities is None else {"GIT_SSL_CAINFO": authorities}
    return trust | {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ALLOW_PROTOCOL": ":".join(protocols),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_HTTP_LOW_SPEED_LIMIT": str(LOW_SPEED_BYTES_PER_S),
        "GIT_HTTP_LOW_SPEED_TIME": str(LOW_SPEED_S),
    }


_SAFE: Final = (
    "-c", "core.hooksPath=/dev/null",
    "-c", "protocol.version=2",
    "-c", "gc.auto=0",
    # In newer versions it would go on by itself when git has ended, beside whatever comes next.
    "-c", "maintenance.auto=false",
    "-c", "submodule.recurse=false",
    "-c", "fetch.fsckObjects=true",
    # One pack file, so that the limit on a file is a limit on the fetch.
    "-c", "fetch.unpackLimit=1",
    # Each thread reserves memory of its own, of which there is a limit.
    "-c", "pack.threads=1",
    "-c", "safe.directory=*",
    "-c", "http.followRedirects=false",
    "-c", "core.symlinks=false",
)  # fmt: skip


def run_git(
    arguments: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    timeout_s: float,
    given: bytes = b"",
    max_file_bytes: int | None = None,
) -> bytes:
    """Run git on `given` as its input.

    It is killed with all that it started when the deadline passes, or with this process.

    A file or an output of more than `max_file_bytes` ends it, too, as does too much memory.

    Raises:
        GitFailed: git failed. GitUnavailable: for a reason that passes. SourceUnavailable: it took too long.
        OSError: there is no git, or its limits cannot be set.
    """
    # Set before git starts: its children, which take what a stranger sends, inherit them.
    limits = [f"--as={MAX_MEMORY_BYTES}"]
    if max_file_bytes is not None:
        limits.append(f"--fsize={max_file_bytes}")
    with (
        _group_that_ends_with_this_process() as group,
        tempfile.TemporaryFile() as output,
        tempfile.TemporaryFile() as errors,
    ):
        process = subprocess.Popen(
            ["prlimit", *limits, "--", "git", *_SAFE, *arguments],
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=errors,
            process_group=group,
        )
        try:
            process.communicate(given, timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(group, signal.SIGKILL)
            process.communicate()
            raise SourceUnavailable(
                f"git {_command(arguments)} did not finish within {timeout_s:.0f} s"
            ) from None
        if process.returncode != 0:
            errors.seek(0)
            if errors.read(len(_NOT_STARTED)) == _NOT_STARTED:
                raise OSError(f"git cannot be started: {errors.readline().decode(errors='replace').strip()}")
            told = output_tail(errors, MAX_ERRORS_BYTES).decode(errors="replace")
            raise _failure(_command(arguments), process.returncode, told)
        output.seek(0)
        return output.read()


def _failure(command: str, status: int, told: str) -> GitFailed:
    if status == -signal.SIGXFSZ:
        return GitFailed(f"git {command} said or wrote more than it may", Fault.OTHER)
    told = told.strip()
    fault = fault_of(told)
    error = GitUnavailable if fault in PASSING else GitFailed
    return error(f"git {command} failed: {told.splitlines()[-1] if told else status}", fault)


@contextlib.contextmanager
def _group_that_ends_with_this_process() -> Iterator[int]:
    """A process group that is killed when this process ends, however it does, or when the block is left.

    PR_SET_PDEATHSIG would end git alone: what talks to the remote is a child of git's, which does not
    inherit it. So the group's first process waits for the end of a pipe that only this process holds.
    """
    guard = subprocess.Popen(
        ["/bin/sh", "-c", "read -r _; kill -KILL 0"], stdin=subprocess.PIPE, env={}, process_group=0
    )
    try:
        yield guard.pid
    finally:
        # Not reaped yet, so the number is still the group's.
        os.killpg(guard.pid, signal.SIGKILL)
        guard.communicate()


def _command(arguments: Sequence[str]) -> str:
    """The git command among options of git itself (`-c name=value`)."""
    before = ("", *arguments)
    return next(one for one, option in zip(arguments, before, strict=False) if "-c" not in (one, option))


def create_bare_repository(path: Path) -> None:
    """Create an empty bare repository that serves any commit by its hash, as GitHub does."""
    path.mkdir(parents=True)
    env = git_environment(())
    run_git(
        ["init", "--quiet", "--bare", "--initial-branch=main"], cwd=path, env=env, timeout_s=LOCAL_TIMEOUT_S
    )
    run_git(["config", "uploadpack.allowAnySHA1InWant", "true"], cwd=path, env=env, timeout_s=LOCAL_TIMEOUT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One file of a commit."""

    mode: str
    object_id: str
    path: str

    @property
    def is_regular_file(self) -> bool:
        """Whether it is neither a link nor a submodule."""
        return self.mode.startswith(REGULAR_FILE)


class GitStore:
    """A new bare repository, for the commit that is fetched into it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def fetch_commit(
        self,
        url: str,
        commit_hash: CommitHash,
        *,
        allow_file: bool = False,
        timeout_s: float = FETCH_TIMEOUT_S,
        max_bytes: int = MAX_FETCH_BYTES,
    ) -> None:
        """Fetch one commit, without history.

        Raises:
            SourceRejected: not found, too large. SourceUnavailable: the remote is away, fails or is too slow.
        """
        check_commit_hash(commit_hash)
        self._path.mkdir(parents=True)
        self._git(["init", "--quiet", "--bare"])
        env = git_environment(("https", "file") if allow_file else ("https",))
        try:
            # No --filter: git would write the stranger's URL into the store as a promisor, to be asked again.
            run_git(
                ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head",
                 "--no-recurse-submodules", "--", url, commit_hash],
                cwd=self._path, env=env, timeout_s=timeout_s, max_file_bytes=max_bytes,
            )  # fmt: skip
        except SourceRejected as error:
            if self._unfinished_bytes() >= max_bytes:
                raise SourceRejected(f"{url} at {commit_hash} is more than {max_bytes:,} bytes") from error
            raise
        if not self._has(commit_hash):
            raise SourceRejected(f"{url} does not hold commit {commit_hash}")

    def read_blobs(self, commit_hash: CommitHash, folder: str, suffix: str = ".py") -> dict[str, bytes]:
        """Return name -> content of the regular files directly in a folder of a commit.

        Raises:
            SourceRejected: the folder is missing, or a file is too large.
        """
        blobs = [blob for blob in self._list(commit_hash, folder) if blob.path.endswith(suffix)]
        if not blobs:
            raise SourceRejected(f"commit {commit_hash} has no {suffix} files in {folder}/")
        if len(blobs) > MAX_BLOBS:
            raise SourceRejected(f"{folder}/ holds {len(blobs)} files, more than {MAX_BLOBS}")
        named = {blob.path.removeprefix(f"{folder}/"): blob for blob in blobs if blob.is_regular_file}
        return self._contents({name: blob for name, blob in named.items() if "/" not in name})

    def _contents(self, files: Mapping[str, Blob]) -> dict[str, bytes]:
        """What each file holds. Raises SourceRejected: one is too large, or is no file."""
        # All at once: one after the other git would build anew what they rest on, which may be large.
        asked = "".join(f"{blob.object_id}\n" for blob in files.values()).encode()
        listed = self._git(["cat-file", "--batch-check=%(objecttype) %(objectsize)"], given=asked)
        sizes = {}
        for (name, blob), line in zip(files.items(), listed.decode().splitlines(), strict=True):
            kind, _, digits = line.partition(" ")
            if kind != "blob":
                raise SourceRejected(f"{blob.path} is no file, whatever the folder says")
            sizes[name] = int(digits)
            if sizes[name] > MAX_BLOB_BYTES:
                raise SourceRejected(f"{blob.path} is {sizes[name]:,} bytes, more than {MAX_BLOB_BYTES:,}")
        room = sum(sizes.values()) + MAX_LISTING_BYTES
        told = io.BytesIO(self._git(["cat-file", "--batch=%(objectsize)"], given=asked, max_bytes=room))
        contents = {}
        for name, size in sizes.items():
            told.readline()
            contents[name] = told.read(size)
            told.read(1)
        return contents

    def _list(self, commit_hash: CommitHash, folder: str) -> list[Blob]:
        listing = self._git(["ls-tree", "-z", commit_hash, "--", f"{folder}/"])
        blobs = []
        for line in listing.decode("utf-8", errors="replace").split("\0"):
            if line:
                head, path = line.split("\t", 1)
                mode, _, object_id = head.split(" ")
                blobs.append(Blob(mode=mode, object_id=object_id, path=path))
        return blobs

    def _unfinished_bytes(self) -> int:
        """Size of the largest pack that a fetch which failed has left."""
        packs = (self._path / "objects" / "pack").glob("tmp_*")
        return max((pack.stat().st_size for pack in packs), default=0)

    def _has(self, commit_hash: CommitHash) -> bool:
        try:
            return self._git(["cat-file", "-t", commit_hash]).strip() == b"commit"
        except SourceUnavailable:
            raise
        except SourceRejected:
            return False

    def _git(
        self, arguments: Sequence[str], *, given: bytes = b"", max_bytes: int = MAX_LISTING_BYTES
    ) -> bytes:
        return run_git(
            arguments,
            cwd=self._path,
            env=git_environment(()),
            timeout_s=LOCAL_TIMEOUT_S,
            given=given,
            max_file_bytes=max_bytes,
        )
