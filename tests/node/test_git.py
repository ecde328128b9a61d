"""git plumbing against real repositories, honest and hostile."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr

from node.git import GitFailed, GitStore, create_bare_repository, git_environment, run_git
from node.git_faults import Fault, fault_of
from node.git_work_tree import Author, GitWorkTree
from protocol.errors import InvalidForkUrl, SourceRejected, SourceUnavailable
from protocol.forks import TARGET_DIR
from protocol.types import CommitHash

AUTHOR = Author(name="a miner", email="miner@example.org")


def git(*arguments: str, cwd: Path) -> str:
    """Run git as a miner might."""
    env = {**git_environment(("file",)), "GIT_AUTHOR_NAME": "x", "GIT_AUTHOR_EMAIL": "x@example.org"}
    env |= {"GIT_COMMITTER_NAME": "x", "GIT_COMMITTER_EMAIL": "x@example.org"}
    return subprocess.run(
        ["git", *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """Return an empty bare repository."""
    path = tmp_path / "remote.git"
    create_bare_repository(path)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> GitWorkTree:
    """Return a work tree with one kernel file."""
    work = GitWorkTree(tmp_path / "work")
    work.ensure()
    folder = work.path / TARGET_DIR
    folder.mkdir(parents=True)
    (folder / "chunk.py").write_text("x = 1\n")
    return work


def pushed(tree: GitWorkTree, remote: Path) -> CommitHash:
    commit = tree.commit_all("a kernel", AUTHOR)
    tree.push(remote.as_uri(), commit, "quasar")
    return commit


def read_back(tree: GitWorkTree, remote: Path, tmp_path: Path) -> dict[str, bytes]:
    """What a validator reads of the last commit."""
    commit = tree.head()
    tree.push(remote.as_uri(), commit, "quasar")
    store = GitStore(tmp_path / "store")
    store.fetch_commit(remote.as_uri(), commit, allow_file=True)
    return store.read_blobs(commit, TARGET_DIR)


def test_commit_push_fetch_read(tree: GitWorkTree, remote: Path, tmp_path: Path) -> None:
    commit = tree.commit_all("a kernel", AUTHOR)
    assert not tree.remote_has(remote.as_uri(), commit, "quasar")
    tree.push(remote.as_uri(), commit, "quasar")
    assert tree.remote_has(remote.as_uri(), commit, "quasar")
    assert tree.commit_all("nothing new", AUTHOR) == commit
    store = GitStore(tmp_path / "store")
    store.fetch_commit(remote.as_uri(), commit, allow_file=True)
    assert store.read_blobs(commit, TARGET_DIR) == {"chunk.py": b"x = 1\n"}


def test_an_older_commit_is_found_by_its_hash(tree: GitWorkTree, remote: Path, tmp_path: Path) -> None:
    first = pushed(tree, remote)
    (tree.path / TARGET_DIR / "chunk.py").write_text("x = 2\n")
    second = pushed(tree, remote)
    assert first != second
    store = GitStore(tmp_path / "store")
    store.fetch_commit(remote.as_uri(), first, allow_file=True)
    assert store.read_blobs(first, TARGET_DIR) == {"chunk.py": b"x = 1\n"}


def test_file_urls_need_leave(tree: GitWorkTree, remote: Path, tmp_path: Path) -> None:
    commit = pushed(tree, remote)
    with pytest.raises(SourceRejected, match="transport 'file' not allowed"):
        GitStore(tmp_path / "store").fetch_commit(remote.as_uri(), commit)


@pytest.mark.parametrize("url", ["ext::sh -c touch% /tmp/owned", "--upload-pack=touch owned", "ssh://host/x"])
def test_hostile_urls_run_nothing(url: str, tmp_path: Path) -> None:
    with pytest.raises(SourceRejected):
        GitStore(tmp_path / "store").fetch_commit(url, CommitHash("0" * 40), allow_file=True)
    assert not (tmp_path / "store" / "owned").exists()


def test_hash_must_be_a_hash(tmp_path: Path) -> None:
    with pytest.raises(InvalidForkUrl, match="HEAD"):
        GitStore(tmp_path / "store").fetch_commit("file:///x", CommitHash("HEAD"), allow_file=True)


def test_unknown_commit(tree: GitWorkTree, remote: Path, tmp_path: Path) -> None:
    pushed(tree, remote)
    with pytest.raises(SourceRejected, match=r"failed|does not hold"):
        GitStore(tmp_path / "store").fetch_commit(remote.as_uri(), CommitHash("ab" * 20), allow_file=True)


def test_links_and_submodules_are_not_read(tree: GitWorkTree, remote: Path, tmp_path: Path) -> None:
    (tree.path / TARGET_DIR / "link.py").symlink_to("/etc/passwd")
    git("add", "--all", cwd=tree.path)
    git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},{TARGET_DIR}/module.py", cwd=tree.path)
    git("commit", "-qm", "hostile", cwd=tree.path)
    assert read_back(tree, remote, tmp_path) == {"chunk.py": b"x = 1\n"}


def test_an_executable_file_is_a_file(tree: GitWorkTree, remote: Path, tmp_path: Path) -> None:
    """Some file systems know no other files; a miner who works there has done nothing wrong."""
    (tree.path / TARGET_DIR / "chunk.py").chmod(0o755)
    tree.commit_all("executable", AUTHOR)
    assert read_back(tree, remote, tmp_path) == {"chunk.py": b"x = 1\n"}
    assert "100755" in git("ls-tree", "HEAD", f"{TARGET_DIR}/", cwd=tree.path)


def test_what_a_repository_says_of_filters_is_not_followed(
    tree: GitWorkTree, remote: Path, tmp_path: Path
) -> None:
    """Git LFS would fetch from an address of the miner's; what is read is the pointer as it stands."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12\n"
    (tree.path / TARGET_DIR / "chunk.py").write_bytes(pointer)
    (tree.path / ".gitattributes").write_text(
        "*.py filter=lfs diff=lfs merge=lfs -text working-tree-encoding=UTF-16\n"
    )
    (tree.path / ".lfsconfig").write_text("[lfs]\n\turl = http://127.0.0.1:9/\n")
    blob = git("hash-object", "-w", "--no-filters", f"{TARGET_DIR}/chunk.py", cwd=tree.path).strip()
    git("add", ".gitattributes", ".lfsconfig", cwd=tree.path)
    git("update-index", "--add", "--cacheinfo", f"100644,{blob},{TARGET_DIR}/chunk.py", cwd=tree.path)
    git("commit", "-qm", "filters", cwd=tree.path)
    assert read_back(tree, remote, tmp_path) == {"chunk.py": pointer}


def test_what_git_complains_of_is_no_outage_whatever_it_quotes(
    tree: GitWorkTree, remote: Path, tmp_path: Path
) -> None:
    (tree.path / ".gitmodules").write_text(
        '[submodule "x"]\n\tpath = x\n\turl = "-the remote end hung up unexpectedly"\n'
    )
    commit = pushed(tree, remote)
    with pytest.raises(GitFailed, match="index-pack") as caught:
        GitStore(tmp_path / "store").fetch_commit(remote.as_uri(), commit, allow_file=True)
    assert not isinstance(caught.value, SourceUnavailable)
    assert caught.value.fault is Fault.CONTENT


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ("fatal: write error: No space left on device\nfatal: index-pack failed", Fault.HOST),
        ("error: index-pack died of signal 9\nfatal: early EOF", Fault.HOST),
        ("error: read error: Input/output error", Fault.HOST),
        ("remote: error: read error: Input/output error", Fault.OTHER),
        ("fatal: Out of memory, malloc failed (tried to allocate 1048576 bytes)", Fault.HOST),
        ("fatal: protocol error: bad pack header", Fault.AWAY),
        ("remote: fatal: write error: No space left on device\nfatal: early EOF", Fault.OTHER),
    ],
)
def test_a_host_that_fails_is_told_from_a_remote_that_does(told: str, fault: Fault) -> None:
    assert fault_of(told) is fault


def test_large_files_are_refused(tree: GitWorkTree, remote: Path, tmp_path: Path) -> None:
    (tree.path / TARGET_DIR / "big.py").write_text("#" * (1_100_000))
    commit = pushed(tree, remote)
    store = GitStore(tmp_path / "store")
    store.fetch_commit(remote.as_uri(), commit, allow_file=True)
    with pytest.raises(SourceRejected):
        store.read_blobs(commit, TARGET_DIR)


def test_files_are_read_all_at_once(
    tree: GitWorkTree, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by itself could have git rebuild something large that a stranger has them rest on."""
    for number in range(100):
        (tree.path / TARGET_DIR / f"m{number}.py").write_bytes(b"\n" * number + b"x = 1")
    commit = pushed(tree, remote)
    store = GitStore(tmp_path / "store")
    store.fetch_commit(remote.as_uri(), commit, allow_file=True)
    runs: list[object] = []

    def counted(*arguments: object, **options: object) -> bytes:
        runs.append(arguments)
        return run_git(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("node.git.run_git", counted)
    files = store.read_blobs(commit, TARGET_DIR)
    assert files == {"chunk.py": b"x = 1\n"} | {f"m{n}.py": b"\n" * n + b"x = 1" for n in range(100)}
    assert len(runs) == 3


def test_folder_that_is_missing(tree: GitWorkTree, remote: Path, tmp_path: Path) -> None:
    commit = pushed(tree, remote)
    store = GitStore(tmp_path / "store")
    store.fetch_commit(remote.as_uri(), commit, allow_file=True)
    with pytest.raises(SourceRejected, match=r"no \.py files in fla/ops/kda"):
        store.read_blobs(commit, "fla/ops/kda")


def test_hooks_of_the_remote_owner_do_not_run(tree: GitWorkTree, tmp_path: Path) -> None:
    marker = tmp_path / "owned"
    for name in ("pre-commit", "commit-msg", "pre-push", "post-commit"):
        hook = tree.path / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {marker}\n")
        hook.chmod(0o755)
    tree.commit_all("a kernel", AUTHOR)
    assert not marker.exists()


def test_token_is_in_no_argument_and_no_file(
    tree: GitWorkTree, remote: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "arguments"
    fake = tmp_path / "bin" / "git"
    fake.parent.mkdir()
    real = subprocess.run(
        ["sh", "-c", "command -v git"], capture_output=True, text=True, check=True
    ).stdout.strip()
    fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {seen}\nexec {real} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    commit = tree.commit_all("a kernel", AUTHOR)
    tree.push(remote.as_uri(), commit, "quasar", token=SecretStr("ghp_very_secret"))
    assert "push" in seen.read_text()
    assert "ghp_very_secret" not in seen.read_text()
    for path in (tree.path / ".git").rglob("*"):
        assert not path.is_file() or b"ghp_very_secret" not in path.read_bytes()


def test_a_git_that_is_not_there_says_nothing_about_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "prlimit").symlink_to(shutil.which("prlimit") or "")
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(OSError, match="git cannot be started: failed to execute git"):
        GitStore(tmp_path / "store").fetch_commit("https://example.org/a/b", CommitHash("ab" * 20))
