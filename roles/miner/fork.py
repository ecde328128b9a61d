"""The miner's fork: a git work tree where candidates are committed, and a remote that sees them when due."""

import asyncio
import functools
import shutil
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from pydantic import SecretStr
from yarl import URL

from kernels.fork_base import write_fla_base
from node.clock import Clock
from node.git import GitFailed
from node.git_faults import Fault
from node.git_work_tree import Author, GitWorkTree
from node.logs import get_logger
from node.settings_model import Settings
from protocol.errors import ConfigError, InvalidForkUrl, SourceRejected
from protocol.forks import TARGET_DIR, check_fork_url
from protocol.types import CommitHash
from roles.miner.github import GitHub
from roles.miner.remote_faults import RemoteRefused

T = TypeVar("T")

WORK_FOLDER: Final = "quasar_work"
REPOSITORY: Final = "flash-linear-attention"


SHOW_ATTEMPTS: Final = 5
SHOW_PAUSE_S: Final = 1.0
"""A server of many machines may show a push a little later."""

EnsureFork = Callable[[], Awaitable[None]]
"""Makes the fork on its server when it is not there; raises SourceRejected."""

_log = get_logger(__name__)


async def _is_there() -> None:
    """A bare repository on this machine is made by hand."""


class Fork:
    """Commits candidates locally and pushes one of them when told to.

    The work tree is used by one thread at a time; so is the remote's branch, because to see a commit on it
    means that no other is pushed in between. Nothing on the remote is overwritten: where the branch has moved
    or is protected, a commit gets a branch of its own. Raises SourceRejected when git or the remote refuses.
    """

    def __init__(
        self,
        path: Path,
        url: str,
        branch: str,
        author: Author,
        *,
        token: SecretStr | None = None,
        ensure: EnsureFork = _is_there,
    ) -> None:
        self.url = url
        self._ensure = ensure
        self._tree = GitWorkTree(path)
        self._branch = branch
        self._author = author
        self._token = token
        self._is_prepared = False
        self._tree_lock = asyncio.Lock()
        self._remote_lock = asyncio.Lock()

    async def prepare(self) -> None:
        """See that the fork is there and lay its base, before anything depends on it."""
        async with self._tree_lock:
            await self._prepare_tree()

    async def commit(self, files: Mapping[str, str], message: str) -> CommitHash:
        """Replace the kernels by `files` (names inside fla/ops/quasar) and commit; nothing is pushed."""
        async with self._tree_lock:
            await self._prepare_tree()
            return await asyncio.to_thread(self._commit, dict(files), message)

    async def publish(self, commit_hash: CommitHash) -> None:
        """Push a commit and see it on the remote. Raises SourceRejected when it does not show."""
        async with self._remote_lock:
            if not (self._tree.path / ".git").exists():
                raise SourceRejected(
                    f"{self._tree.path} is gone, and commit {commit_hash} with it: restore it"
                )
            own_branch = f"{self._branch}-{commit_hash[:12]}"
            for branch in (self._branch, own_branch):
                if await self._shows(commit_hash, branch):
                    return
            branch = await self._push(commit_hash, own_branch)
            for attempt in range(SHOW_ATTEMPTS):
                if await self._shows(commit_hash, branch):
                    return
                if attempt < SHOW_ATTEMPTS - 1:
                    await asyncio.sleep(SHOW_PAUSE_S)
            raise SourceRejected(
                f"{self.url} took commit {commit_hash} but branch {branch} does not show it yet"
            )

    async def _push(self, commit_hash: CommitHash, own_branch: str) -> str:
        """Push to the branch, or to one of the commit's own; the branch that took it."""
        try:
            await self._remote(self._tree.push, commit_hash, self._branch)
        except RemoteRefused as error:
            if error.fault not in (Fault.PROTECTED, Fault.DIVERGED):
                raise
            _log.warning("commit gets a branch of its own", reason=str(error), branch=own_branch)
            await self._remote(self._tree.push, commit_hash, own_branch)
            return own_branch
        return self._branch

    async def _shows(self, commit_hash: CommitHash, branch: str) -> bool:
        return await self._remote(self._tree.remote_has, commit_hash, branch)

    async def _remote(self, act: Callable[..., T], commit_hash: CommitHash, branch: str) -> T:
        try:
            return await asyncio.to_thread(act, self.url, commit_hash, branch, token=self._token)
        except GitFailed as error:
            raise RemoteRefused(error, self.url, branch) from error

    async def _prepare_tree(self) -> None:
        if not self._is_prepared:
            await self._ensure()
            await asyncio.to_thread(self._prepare)
            self._is_prepared = True

    def _commit(self, files: Mapping[str, str], message: str) -> CommitHash:
        # Left by a git that was killed: the data directory's lock says nobody else is here.
        (self._tree.path / ".git" / "index.lock").unlink(missing_ok=True)
        write_kernels(self._tree.path, files)
        return self._tree.commit_all(message, self._author)

    def _prepare(self) -> None:
        """Lay the base that the kernels stand on, once."""
        path = self._tree.path
        if self._has_base():
            return
        # A tree without a commit is the rest of an interrupted start; nothing of it was ever submitted.
        shutil.rmtree(path, ignore_errors=True)
        self._tree.ensure()
        if self.url.startswith("file://"):
            write_fla_base(path)
            self._tree.commit_all("Base: flash-linear-attention, cut to what kernels need", self._author)
        else:
            try:
                self._tree.start_from(self.url, token=self._token)
            except GitFailed as error:
                raise RemoteRefused(error, self.url, "HEAD") from error

    def _has_base(self) -> bool:
        if not (self._tree.path / ".git").exists():
            return False
        try:
            self._tree.head()
        except SourceRejected:
            return False
        return True


def write_kernels(tree: Path, files: Mapping[str, str]) -> None:
    """Make `files` the whole content of fla/ops/quasar under `tree`."""
    folder = tree / TARGET_DIR
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def open_fork(settings: Settings, clock: Clock) -> Fork:
    """The fork that the settings name, below data_dir; git runs at the first commit.

    Raises:
        ConfigError: GitHub is not set up, or a file:// remote outside the local chain.
    """
    miner = settings.miner
    url = fork_url(settings)
    ensure = _is_there
    if miner.fork_remote is None:
        assert miner.github_token is not None
        assert miner.github_username is not None
        owner, name = URL(miner.target_repo).path.strip("/").removesuffix(".git").split("/")
        github = GitHub(miner.github_api, miner.github_token, clock)
        ensure = functools.partial(github.ensure_fork, owner, name, miner.github_username)
    return Fork(
        settings.node.data_dir.resolve() / WORK_FOLDER / REPOSITORY,
        url,
        miner.branch,
        Author(name=miner.author_name, email=miner.author_email),
        token=None if miner.fork_remote is not None else miner.github_token,
        ensure=ensure,
    )


def fork_url(settings: Settings) -> str:
    """Where the fork is published. Raises ConfigError (InvalidForkUrl's sentence) for a wrong setting."""
    miner = settings.miner
    if miner.fork_remote is not None:
        if not settings.is_local_chain:
            raise ConfigError(
                f"miner.fork_remote {miner.fork_remote!r} is for the local chain only: "
                "set GITHUB_USERNAME and GITHUB_TOKEN instead"
            )
        return _checked(miner.fork_remote, settings)
    if not miner.github_username or miner.github_token is None:
        missing = [
            name
            for name, value in (
                ("GITHUB_USERNAME", miner.github_username),
                ("GITHUB_TOKEN", miner.github_token),
            )
            if not value
        ]
        raise ConfigError(
            f"a miner pushes its kernels to a fork on GitHub: GITHUB_USERNAME and GITHUB_TOKEN are needed, "
            f"{' and '.join(missing)} not set"
        )
    host, _, path = _checked(miner.target_repo, settings).removeprefix("https://").partition("/")
    repository = path.rpartition("/")[2]
    return _checked(f"https://{host}/{miner.github_username}/{repository}", settings)


def _checked(url: str, settings: Settings) -> str:
    try:
        return check_fork_url(
            url, allowed_hosts=settings.api.allowed_git_hosts, allow_file=settings.is_local_chain
        )
    except InvalidForkUrl as error:
        raise ConfigError(f"the miner's fork cannot be used: {error}") from error
