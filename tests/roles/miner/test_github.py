"""The fork on a GitHub: made through the API, pushed to over HTTPS, and every refusal in a clear sentence."""

import asyncio
import functools
import os
import subprocess
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr

from node.git_faults import Fault
from node.git_work_tree import Author
from protocol.errors import ConfigError, SourceRejected
from roles.miner.fork import Fork
from roles.miner.github import ATTEMPTS, GitHub, GitHubRefused
from roles.miner.remote_faults import RemoteRefused
from tests.fakes.clock import FakeClock
from tests.fakes.github import NAME, OWNER, TOKEN, USER, FakeGitHub, commit, write_certificate
from tests.roles.miner.harness import files

AUTHOR = Author(name="Ada", email="ada@example.org")


class QuickClock(FakeClock):
    """A clock on which sleeping takes no time."""

    async def sleep(self, seconds: float) -> None:
        self._elapsed_s += max(0.0, seconds)
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> QuickClock:
    return QuickClock()


@pytest.fixture
async def github(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeGitHub]:
    """A GitHub with the upstream repository, trusted by git in this process."""
    certificate = tmp_path / "github.pem"
    write_certificate(certificate)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    fake = FakeGitHub(root=tmp_path / "github", certificate=certificate)
    fake.root.mkdir()
    fake.found()
    async with fake.serve():
        yield fake


def api_of(github: FakeGitHub, clock: QuickClock, token: str = TOKEN) -> GitHub:
    return GitHub(github.api_url, SecretStr(token), clock)


def fork_of(github: FakeGitHub, clock: QuickClock, folder: Path, *, token: str = TOKEN) -> Fork:
    """The miner's fork on that GitHub."""
    ensure = functools.partial(api_of(github, clock, token).ensure_fork, OWNER, NAME, USER)
    return Fork(folder, github.fork_url, "quasar", AUTHOR, token=SecretStr(token), ensure=ensure)


async def test_fork_is_made_cloned_committed_to_and_pushed(
    github: FakeGitHub, clock: QuickClock, tmp_path: Path
) -> None:
    github.not_ready = 0
    fork = fork_of(github, clock, tmp_path / "work")
    await fork.prepare()
    assert github.seen.count(f"POST /repos/{OWNER}/{NAME}/forks") == 1
    first = await fork.commit(files(), "Kernels: first")
    assert github.branches().keys() == {"main"}
    await fork.publish(first)
    assert github.branches()["quasar"] == first
    log = subprocess.run(
        ["git", "log", "--format=%an <%ae> %s", "quasar"],
        cwd=github.repository(USER),
        capture_output=True,
        text=True,
        check=True,
    )
    assert log.stdout.splitlines() == ["Ada <ada@example.org> Kernels: first", "a <a@b> upstream"]
    # A fork that is there is not made again, and what was published needs nothing.
    again = fork_of(github, clock, tmp_path / "work")
    await again.prepare()
    await again.publish(first)
    assert github.seen.count(f"POST /repos/{OWNER}/{NAME}/forks") == 1


async def test_token_is_in_no_file_and_no_address(
    github: FakeGitHub, clock: QuickClock, tmp_path: Path
) -> None:
    fork = fork_of(github, clock, tmp_path / "work")
    await fork.publish(await fork.commit(files(), "first"))
    for path in (tmp_path / "work").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
    assert all(TOKEN not in one for one in github.seen)
    assert all(TOKEN not in value for value in os.environ.values())


async def test_revoked_token_is_said_so_and_a_push_that_failed_succeeds_later(
    github: FakeGitHub, clock: QuickClock, tmp_path: Path
) -> None:
    fork = fork_of(github, clock, tmp_path / "work")
    commit_hash = await fork.commit(files(), "first")
    github.accepted_token = None
    with pytest.raises(
        RemoteRefused, match="does not accept GITHUB_TOKEN: it was revoked or has expired"
    ) as caught:
        await fork.publish(commit_hash)
    assert caught.value.fault is Fault.TOKEN
    assert TOKEN not in str(caught.value)
    with pytest.raises(GitHubRefused, match=r"401: Bad credentials.*revoked or has expired") as refused:
        await api_of(github, clock).ensure_fork(OWNER, NAME, USER)
    assert TOKEN not in str(refused.value)
    github.accepted_token = TOKEN
    await fork.publish(commit_hash)
    assert github.branches()["quasar"] == commit_hash


@pytest.mark.parametrize("trouble", ["protected", "diverged"])
async def test_branch_that_takes_no_push_is_left_alone_and_the_commit_gets_its_own(
    github: FakeGitHub, clock: QuickClock, tmp_path: Path, trouble: str
) -> None:
    fork = fork_of(github, clock, tmp_path / "work")
    commit_hash = await fork.commit(files(), "first")
    if trouble == "protected":
        github.protect("quasar")
    else:
        other = tmp_path / "other"
        clone = ["git", "clone", "--quiet", str(github.repository(USER)), str(other)]
        subprocess.run(clone, check=True)
        (other / "theirs").write_text("work of another machine")
        theirs = commit(other, "theirs")
        subprocess.run(["git", "push", "--quiet", "origin", "HEAD:quasar"], cwd=other, check=True)
    await fork.publish(commit_hash)
    branches = github.branches()
    assert branches[f"quasar-{commit_hash[:12]}"] == commit_hash
    assert branches.get("quasar") == (None if trouble == "protected" else theirs)
    await fork.publish(commit_hash)
    assert github.branches() == branches


@pytest.mark.parametrize(
    ("status", "fault", "words"),
    [
        (403, Fault.PERMISSION, "Contents: read and write"),
        (404, Fault.MISSING, "no such repository"),
        (429, Fault.LIMIT, "too many requests"),
        (503, Fault.AWAY, "it is away"),
    ],
)
async def test_what_git_is_answered_becomes_a_sentence_and_the_next_attempt_succeeds(
    github: FakeGitHub, clock: QuickClock, tmp_path: Path, status: int, fault: Fault, words: str
) -> None:
    fork = fork_of(github, clock, tmp_path / "work")
    commit_hash = await fork.commit(files(), "first")
    github.git_status = [status] * 4
    with pytest.raises(RemoteRefused, match=words) as caught:
        await fork.publish(commit_hash)
    assert caught.value.fault is fault
    github.git_status = []
    await fork.publish(commit_hash)
    assert github.branches()["quasar"] == commit_hash


async def test_token_that_may_not_push(github: FakeGitHub, clock: QuickClock, tmp_path: Path) -> None:
    fork = fork_of(github, clock, tmp_path / "work")
    commit_hash = await fork.commit(files(), "first")
    github.may_push = False
    with pytest.raises(RemoteRefused, match="may not push there"):
        await fork.publish(commit_hash)


async def test_server_that_nobody_vouches_for_gets_nothing(
    github: FakeGitHub, clock: QuickClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    github.fork()
    fork = fork_of(github, clock, tmp_path / "work")
    with pytest.raises(SourceRejected, match="certificate"):
        await fork.prepare()
    assert not [one for one in github.seen if one.startswith("git ")]


async def test_fork_that_is_slow_to_come_is_waited_for(github: FakeGitHub, clock: QuickClock) -> None:
    github.not_ready = 5
    started = clock.monotonic()
    await api_of(github, clock).ensure_fork(OWNER, NAME, USER)
    assert clock.monotonic() > started
    assert github.repository(USER).exists()


async def test_fork_that_never_comes_is_told(github: FakeGitHub, clock: QuickClock) -> None:
    github.not_ready = 10**6
    with pytest.raises(GitHubRefused, match=f"fork {USER}/{NAME} is not ready after 300 s"):
        await api_of(github, clock).ensure_fork(OWNER, NAME, USER)


@pytest.mark.parametrize("kind", ["primary", "secondary", "429"])
async def test_limits_are_waited_for(github: FakeGitHub, clock: QuickClock, kind: str) -> None:
    github.fork()
    reset = int((clock.now() + timedelta(minutes=30)).timestamp())
    answers = {
        "primary": (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(reset)}, 1800),
        "secondary": (403, {"Retry-After": "70"}, 70),
        "429": (429, {}, 60),
    }
    status, headers, wait_s = answers[kind]
    body = {"message": "API rate limit exceeded"}
    github.api_answers = [web.json_response(body, status=status, headers=headers)]
    await api_of(github, clock).ensure_fork(OWNER, NAME, USER)
    assert clock.monotonic() == pytest.approx(wait_s, abs=1.0)


async def test_server_errors_are_tried_again_and_given_up_in_the_end(
    github: FakeGitHub, clock: QuickClock
) -> None:
    github.fork()
    github.api_answers = [web.Response(status=502, text="{}"), web.Response(status=200, text="no JSON")]
    await api_of(github, clock).ensure_fork(OWNER, NAME, USER)
    github.api_answers = [web.Response(status=502, text="{}") for _ in range(2 * ATTEMPTS)]
    with pytest.raises(GitHubRefused, match="502"):
        await api_of(github, clock).ensure_fork(OWNER, NAME, USER)


async def test_address_where_nobody_listens(clock: QuickClock) -> None:
    with pytest.raises(SourceRejected, match="does not answer GET /user"):
        await GitHub("http://127.0.0.1:1", SecretStr(TOKEN), clock).ensure_fork(OWNER, NAME, USER)


async def test_token_that_may_not_fork(github: FakeGitHub, clock: QuickClock) -> None:
    github.may_fork = False
    with pytest.raises(GitHubRefused, match="Administration: read and write"):
        await api_of(github, clock).ensure_fork(OWNER, NAME, USER)


async def test_token_of_somebody_else(github: FakeGitHub, clock: QuickClock) -> None:
    with pytest.raises(GitHubRefused, match=f"belongs to '{USER}' and GITHUB_USERNAME is 'me'"):
        await api_of(github, clock).ensure_fork(OWNER, NAME, "me")


async def test_repository_of_that_name_that_is_no_fork(github: FakeGitHub, clock: QuickClock) -> None:
    github.fork()
    with pytest.raises(GitHubRefused, match="is no fork of another/"):
        await api_of(github, clock).ensure_fork("another", NAME, USER)


def test_token_goes_over_https_only(clock: QuickClock) -> None:
    with pytest.raises(ConfigError, match="https"):
        GitHub("http://github.example", SecretStr(TOKEN), clock)
