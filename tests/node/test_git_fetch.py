"""What a fetch may take and leave, whatever the remote does."""

import os
import subprocess
from pathlib import Path

import pytest

from node.git import GitStore, create_bare_repository
from node.git_work_tree import Author, GitWorkTree
from protocol.errors import SourceRejected
from protocol.types import CommitHash

AUTHOR = Author(name="a miner", email="miner@example.org")


def remote_with(tmp_path: Path, content: bytes) -> tuple[str, CommitHash]:
    """Make a bare repository that offers every protocol feature, with one commit; return address and hash."""
    remote = tmp_path / "remote.git"
    create_bare_repository(remote)
    subprocess.run(["git", "-C", str(remote), "config", "uploadpack.allowFilter", "true"], check=True)
    tree = GitWorkTree(tmp_path / "work")
    tree.ensure()
    (tree.path / "chunk.py").write_bytes(content)
    commit = tree.commit_all("a kernel", AUTHOR)
    tree.push(remote.as_uri(), commit, "quasar")
    return remote.as_uri(), commit


def test_the_store_does_not_remember_where_commits_came_from(tmp_path: Path) -> None:
    url, commit = remote_with(tmp_path, b"x = 1\n")
    store = GitStore(tmp_path / "store")
    store.fetch_commit(url, commit, allow_file=True)
    config = (tmp_path / "store" / "config").read_text()
    assert "promisor" not in config
    assert "remote" not in config


def test_a_fetch_that_grows_too_large_is_stopped(tmp_path: Path) -> None:
    url, commit = remote_with(tmp_path, os.urandom(3_000_000))
    with pytest.raises(SourceRejected, match="more than 1,000,000 bytes"):
        GitStore(tmp_path / "small").fetch_commit(url, commit, allow_file=True, max_bytes=1_000_000)
    GitStore(tmp_path / "large").fetch_commit(url, commit, allow_file=True, max_bytes=4_000_000)


AS_SOMEBODY = ("-c", "user.name=a", "-c", "user.email=a@example.org")


def git(remote: Path, *arguments: str, given: bytes = b"") -> str:
    """Run git in a repository; return what it says."""
    command = ["git", "-C", str(remote), *arguments]
    return subprocess.run(command, input=given, check=True, capture_output=True).stdout.decode().strip()


def test_a_folder_with_entries_without_end_is_not_read(tmp_path: Path) -> None:
    url, commit = remote_with(tmp_path, b"x = 1\n")
    remote = tmp_path / "remote.git"
    blob = git(remote, "rev-parse", f"{commit}:chunk.py")
    listing = "".join(f"100644 blob {blob}\tname{number}.py\n" for number in range(70_000))
    many = git(remote, "mktree", given=listing.encode())
    commit = CommitHash(git(remote, *AS_SOMEBODY, "commit-tree", many, given=b"many files"))
    store = GitStore(tmp_path / "store")
    store.fetch_commit(url, commit, allow_file=True)
    with pytest.raises(SourceRejected, match="git ls-tree said or wrote more than it may"):
        store.read_blobs(commit, ".")


def test_git_has_so_much_memory_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, plain = remote_with(tmp_path, b"x = 1\n")
    remote = tmp_path / "remote.git"
    tree = git(remote, "rev-parse", f"{plain}^{{tree}}")
    commit = CommitHash(git(remote, *AS_SOMEBODY, "commit-tree", tree, given=400 * 2**20 * b"x"))
    monkeypatch.setattr("node.git.MAX_MEMORY_BYTES", 256 * 2**20)
    with pytest.raises(SourceRejected):
        GitStore(tmp_path / "full").fetch_commit(url, commit, allow_file=True)
    GitStore(tmp_path / "store").fetch_commit(url, plain, allow_file=True)
