"""The miner's fork on disk: commit a work tree, push a commit, look what the remote shows.

As in `node.git` every call runs without configuration, hooks and prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from node.git import FETCH_TIMEOUT_S, LOCAL_TIMEOUT_S, git_environment, run_git
from protocol.errors import SourceRejected
from protocol.types import CommitHash

# Read from the environment of this one process, so the token is in no argument, URL or file.
_CREDENTIAL_HELPER: Final = (
    '!f() { test "$1" = get && printf "username=%s\\npassword=%s\\n" x-access-token "$QUASAR_GIT_TOKEN"; }; f'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who a commit is by."""

    name: str
    email: str


class GitWorkTree:
    """The miner's own fork on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def ensure(self) -> None:
        """Create the repository when it is not there yet."""
        if not (self.path / ".git").exists():
            self.path.mkdir(parents=True, exist_ok=True)
            self._git(["init", "--quiet", "--initial-branch=main"])

    def start_from(
        self, remote_url: str, *, token: SecretStr | None = None, timeout_s: float = FETCH_TIMEOUT_S
    ) -> CommitHash:
        """Make the tip of the remote's default branch the current commit, without its history; return it.

        Raises:
            SourceRejected: the remote is not there, is empty or did not answer.
        """
        self.ensure()
        self._remote(
            ["fetch", "--quiet", "--depth=1", "--no-tags", "--no-recurse-submodules",
             "--", remote_url, "HEAD"],
            token=token, timeout_s=timeout_s,
        )  # fmt: skip
        self._git(["reset", "--quiet", "--hard", "FETCH_HEAD"])
        return self.head()

    def commit_all(self, message: str, author: Author) -> CommitHash:
        """Commit the whole tree and return the hash; an unchanged tree returns the commit that is there."""
        self._git(["add", "--all"])
        if self._git(["status", "--porcelain"]).strip() or not self._has_head():
            identity = {
                f"GIT_{who}_{what}": value
                for who in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", author.name), ("EMAIL", author.email))
            }
            self._git(["commit", "--quiet", "--no-verify", "--allow-empty", "-m", message], extra=identity)
        return self.head()

    def head(self) -> CommitHash:
        """Return the hash of the current commit."""
        return CommitHash(self._git(["rev-parse", "HEAD"]).decode().strip())

    def push(
        self, remote_url: str, commit_hash: CommitHash, branch: str, *, token: SecretStr | None = None,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:  # fmt: skip
        """Push one commit to a branch, which must be new or lead to it; the token goes through a credential
        helper in memory.

        Raises:
            SourceRejected: the remote refused (GitFailed) or did not answer.
        """
        self._remote(
            ["push", "--quiet", "--no-verify",
             "--", remote_url, f"{commit_hash}:refs/heads/{branch}"],
            token=token, timeout_s=timeout_s,
        )  # fmt: skip

    def remote_has(
        self, remote_url: str, commit_hash: CommitHash, branch: str, *, token: SecretStr | None = None,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> bool:  # fmt: skip
        """True when the remote's branch is at this commit."""
        listing = self._remote(
            ["ls-remote", "--heads", "--", remote_url, f"refs/heads/{branch}"],
            token=token,
            timeout_s=timeout_s,
        )
        return listing.decode(errors="replace").startswith(commit_hash)

    def _remote(self, arguments: Sequence[str], *, token: SecretStr | None, timeout_s: float) -> bytes:
        env = git_environment(("https", "file"))
        helper: list[str] = []
        if token is not None:
            env["QUASAR_GIT_TOKEN"] = token.get_secret_value()
            helper = ["-c", f"credential.helper={_CREDENTIAL_HELPER}"]
        return run_git([*helper, *arguments], cwd=self.path, env=env, timeout_s=timeout_s)

    def _has_head(self) -> bool:
        try:
            self._git(["rev-parse", "--verify", "--quiet", "HEAD"])
        except SourceRejected:
            return False
        return True

    def _git(self, arguments: Sequence[str], extra: Mapping[str, str] | None = None) -> bytes:
        env = {**git_environment(()), **(extra or {})}
        return run_git(arguments, cwd=self.path, env=env, timeout_s=LOCAL_TIMEOUT_S)
