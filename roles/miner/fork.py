"""The miner's fork: a git work tree where candidates are committed, and a remote that sees them when due."""

import asyncio
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from kernels.fork_base import write_fla_base
from node.git import Author, GitWorkTree
from node.settings_model import Settings
from protocol.errors import ConfigError, InvalidForkUrl, SourceRejected
from protocol.forks import TARGET_DIR, check_fork_url
from protocol.types import CommitHash

WORK_FOLDER: Final = "quasar_work"
REPOSITORY: Final = "flash-linear-attention"


class Fork:
    """Commits candidates locally and pushes one of them when told to.

    The work tree is used by one thread at a time; so is the remote's branch, because to see a commit on it
    means that no other is pushed in between. Raises SourceRejected when git or the remote refuses.
    """

    def __init__(
        self, path: Path, url: str, branch: str, author: Author, *, token: SecretStr | None = None
    ) -> None:
        self.url = url
        self._tree = GitWorkTree(path)
        self._branch = branch
        self._author = author
        self._token = token
        self._is_prepared = False
        self._tree_lock = asyncio.Lock()
        self._remote_lock = asyncio.Lock()

    async def commit(self, files: Mapping[str, str], message: str) -> CommitHash:
        """Replace the kernels by `files` (names inside fla/ops/quasar) and commit; nothing is pushed."""
        async with self._tree_lock:
            return await asyncio.to_thread(self._commit, dict(files), message)

    async def publish(self, commit_hash: CommitHash) -> None:
        """Push a commit to the branch and see it there. Raises SourceRejected when it does not show."""
        async with self._remote_lock:
            if not (self._tree.path / ".git").exists():
                raise SourceRejected(
                    f"{self._tree.path} is gone, and commit {commit_hash} with it: restore it"
                )
            if await self._shows(commit_hash):
                return
            await asyncio.to_thread(self._tree.push, self.url, commit_hash, self._branch, token=self._token)
            if not await self._shows(commit_hash):
                raise SourceRejected(
                    f"{self.url} took commit {commit_hash} but branch {self._branch} does not show it yet"
                )

    async def _shows(self, commit_hash: CommitHash) -> bool:
        return await asyncio.to_thread(
            self._tree.remote_has, self.url, commit_hash, self._branch, token=self._token
        )

    def _commit(self, files: Mapping[str, str], message: str) -> CommitHash:
        self._prepare()
        write_kernels(self._tree.path, files)
        return self._tree.commit_all(message, self._author)

    def _prepare(self) -> None:
        """Lay the base that the kernels stand on, once."""
        path = self._tree.path
        if not self._is_prepared and (path / ".git").exists():
            # Left by a git that died with its miner: the data directory's lock says nobody else is here.
            (path / ".git" / "index.lock").unlink(missing_ok=True)
        if self._is_prepared or self._has_base():
            self._is_prepared = True
            return
        # A tree without a commit is the rest of an interrupted start; nothing of it was ever submitted.
        shutil.rmtree(path, ignore_errors=True)
        self._tree.ensure()
        if self.url.startswith("file://"):
            write_fla_base(path)
            self._tree.commit_all("Base: flash-linear-attention, cut to what kernels need", self._author)
        else:
            self._tree.start_from(self.url, token=self._token)
        self._is_prepared = True

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


def open_fork(settings: Settings) -> Fork:
    """The fork that the settings name, below data_dir; git runs at the first commit.

    Raises:
        ConfigError: GitHub is not set up, or a file:// remote outside the local chain.
    """
    miner = settings.miner
    return Fork(
        settings.node.data_dir.resolve() / WORK_FOLDER / REPOSITORY,
        fork_url(settings),
        miner.branch,
        Author(name=miner.author_name, email=miner.author_email),
        token=None if miner.fork_remote is not None else miner.github_token,
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
    host, _, path = miner.target_repo.removeprefix("https://").partition("/")
    repository = path.rstrip("/").rpartition("/")[2]
    return _checked(f"https://{host}/{miner.github_username}/{repository}", settings)


def _checked(url: str, settings: Settings) -> str:
    try:
        return check_fork_url(
            url, allowed_hosts=settings.api.allowed_git_hosts, allow_file=settings.is_local_chain
        )
    except InvalidForkUrl as error:
        raise ConfigError(f"the miner's fork cannot be used: {error}") from error
