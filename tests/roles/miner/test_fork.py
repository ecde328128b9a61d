"""The miner's fork: real git, local commits, and a remote that sees them when told."""

import subprocess
from pathlib import Path

import pytest
from pydantic import SecretStr

from node.clock import SystemClock
from node.git import GitStore, create_bare_repository
from node.git_work_tree import Author
from node.settings_model import MinerSection, Settings
from protocol.errors import ConfigError, SourceRejected
from protocol.forks import TARGET_DIR
from roles.miner.fork import Fork, fork_url, open_fork
from tests.roles.miner.harness import files

AUTHOR = Author(name="quasar-node", email="quasar-node@localhost")


def git(*arguments: str, cwd: Path) -> str:
    """Output of a git command."""
    done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def fork(tmp_path: Path, remote: str) -> Fork:
    return Fork(tmp_path / "work/flash-linear-attention", remote, "quasar", AUTHOR)


async def test_commits_stand_on_the_base_and_hold_exactly_the_given_kernels(
    fork: Fork, tmp_path: Path
) -> None:
    await fork.commit(files() | {"helper.py": "y = 1\n"}, "first")
    commit_hash = await fork.commit(files("x = 2\n"), "second")
    tree = tmp_path / "work/flash-linear-attention"
    assert git("rev-parse", "HEAD", cwd=tree) == commit_hash
    assert git("log", "--format=%an <%ae>", "-1", cwd=tree) == "quasar-node <quasar-node@localhost>"
    listed = git("ls-tree", "-r", "--name-only", "HEAD", cwd=tree).splitlines()
    assert {name for name in listed if name.startswith(TARGET_DIR)} == {
        f"{TARGET_DIR}/{name}" for name in files()
    }
    assert "fla/utils.py" in listed or "fla/utils/__init__.py" in listed


async def test_nothing_is_on_the_remote_before_publish_and_only_that_commit_after(
    fork: Fork, remote: str, tmp_path: Path
) -> None:
    first = await fork.commit(files("x = 1\n"), "first")
    second = await fork.commit(files("x = 2\n"), "second")
    bare = tmp_path / "fork.git"
    assert git("for-each-ref", cwd=bare) == ""
    await fork.publish(first)
    assert git("rev-parse", "refs/heads/quasar", cwd=bare) == first
    assert (
        subprocess.run(
            ["git", "cat-file", "-e", second], cwd=bare, capture_output=True, check=False
        ).returncode
        != 0
    )
    store = GitStore(tmp_path / "store")
    store.fetch_commit(remote, first, allow_file=True)
    assert store.read_blobs(first, TARGET_DIR)["chunk.py"] == b"x = 1\n"


async def test_publish_again_is_harmless(fork: Fork, tmp_path: Path) -> None:
    commit_hash = await fork.commit(files(), "first")
    await fork.publish(commit_hash)
    await fork.publish(commit_hash)
    assert git("rev-parse", "refs/heads/quasar", cwd=tmp_path / "fork.git") == commit_hash


async def test_same_files_are_the_same_commit(fork: Fork, remote: str, tmp_path: Path) -> None:
    commit_hash = await fork.commit(files(), "first")
    again = Fork(tmp_path / "work/flash-linear-attention", remote, "quasar", AUTHOR)
    assert await again.commit(files(), "first") == commit_hash


async def test_start_that_was_interrupted_is_done_again(fork: Fork, tmp_path: Path) -> None:
    tree = tmp_path / "work/flash-linear-attention"
    tree.mkdir(parents=True)
    git("init", "--quiet", cwd=tree)
    (tree / "half").write_text("written")
    await fork.commit(files(), "first")
    assert "half" not in git("ls-tree", "-r", "--name-only", "HEAD", cwd=tree)


async def test_lock_left_by_a_killed_git_does_not_stop_the_miner(
    fork: Fork, remote: str, tmp_path: Path
) -> None:
    tree = tmp_path / "work/flash-linear-attention"
    await fork.commit(files(), "first")
    (tree / ".git/index.lock").touch()
    again = Fork(tree, remote, "quasar", AUTHOR)
    assert await again.commit(files("x = 2\n"), "second") == git("rev-parse", "HEAD", cwd=tree)


async def test_remote_that_is_not_there_is_refused_with_gits_reason(tmp_path: Path) -> None:
    fork = Fork(tmp_path / "work", (tmp_path / "nowhere.git").as_uri(), "quasar", AUTHOR)
    commit_hash = await fork.commit(files(), "first")
    with pytest.raises(SourceRejected, match="git"):
        await fork.publish(commit_hash)


async def test_fork_on_a_server_starts_from_what_it_holds(tmp_path: Path) -> None:
    upstream, bare = tmp_path / "upstream", tmp_path / "github.git"
    create_bare_repository(bare)
    upstream.mkdir()
    git("init", "--quiet", "--initial-branch=main", cwd=upstream)
    (upstream / "README.md").write_text("the original")
    (upstream / TARGET_DIR).mkdir(parents=True)
    (upstream / TARGET_DIR / "old.py").write_text("z = 1\n")
    git("add", "--all", cwd=upstream)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "upstream", cwd=upstream)
    git("push", "--quiet", str(bare), "main", cwd=upstream)

    fork = Fork(tmp_path / "work", str(bare), "quasar", AUTHOR)
    commit_hash = await fork.commit(files(), "first")
    listed = git("ls-tree", "-r", "--name-only", commit_hash, cwd=tmp_path / "work").splitlines()
    assert "README.md" in listed
    assert f"{TARGET_DIR}/old.py" not in listed
    await fork.publish(commit_hash)
    assert git("log", "--format=%s", "quasar", cwd=bare).splitlines() == ["first", "upstream"]


def settings(network: str = "test", **miner: object) -> Settings:
    """Settings of a miner on a network."""
    base = Settings()
    return base.model_copy(
        update={
            "chain": base.chain.model_copy(update={"network": network}),
            "miner": MinerSection.model_validate(miner),
        }
    )


@pytest.mark.parametrize(
    "given",
    [{}, {"github_username": "me"}, {"github_token": SecretStr("ghp_secret")}, {"github_username": ""}],
)
def test_github_settings_are_demanded_together(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        open_fork(settings(**given), SystemClock())
    assert "GITHUB_USERNAME" in str(caught.value)
    assert "GITHUB_TOKEN" in str(caught.value)
    assert "ghp_secret" not in str(caught.value)


def test_fork_has_the_name_of_the_target_repository() -> None:
    url = fork_url(settings(github_username="me", github_token=SecretStr("ghp_secret")))
    assert url == "https://github.com/me/flash-linear-attention"


def test_user_name_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\.\./evil"):
        fork_url(settings(github_username="../evil", github_token=SecretStr("x")))


def test_file_remote_is_for_the_local_chain_only() -> None:
    with pytest.raises(ConfigError, match="local chain only"):
        fork_url(settings(fork_remote="file:///srv/fork.git"))
    assert fork_url(settings("local", fork_remote="file:///srv/fork.git")) == "file:///srv/fork.git"
    with pytest.raises(ConfigError, match="ssh://"):
        fork_url(settings("local", fork_remote="ssh://host/fork.git"))
