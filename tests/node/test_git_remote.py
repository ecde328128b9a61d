"""git and a remote that does not answer as it should: a real server, over TLS."""

import asyncio
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web

from node.git import GitStore
from node.ports import free_port
from protocol.errors import SourceRejected, SourceUnavailable
from protocol.types import CommitHash
from tests.fakes.github import NAME, OWNER, FakeGitHub, write_certificate
from tests.processes import command_lines
from tests.waiting import until

COMMIT = CommitHash("ab" * 20)
FETCH = """
import sys
from pathlib import Path
from node.git import GitStore
GitStore(Path(sys.argv[1])).fetch_commit(sys.argv[2], "ab" * 20)
"""


@dataclass
class SilentRemote:
    """Takes requests and does not answer them."""

    certificate: Path
    asked: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """A repository there."""
        return f"https://127.0.0.1:{self.port}/owner/repository"

    async def take(self, request: web.Request) -> web.Response:
        """Whoever asks waits until they give up."""
        self.asked.append(request.path)
        await asyncio.Event().wait()
        raise AssertionError("it was never set")


@pytest.fixture
def certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What servers on loopback show, and git trusts."""
    path = tmp_path / "remote.pem"
    write_certificate(path)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    return path


@pytest.fixture
async def remote(certificate: Path) -> AsyncIterator[SilentRemote]:
    """A server on loopback that does not answer."""
    silent = SilentRemote(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", silent.take)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    silent.port = runner.addresses[0][1]
    yield silent
    await runner.cleanup()


@pytest.fixture
async def github(certificate: Path, tmp_path: Path) -> AsyncIterator[FakeGitHub]:
    """A server that holds a repository which anybody may read."""
    fake = FakeGitHub(root=tmp_path / "github", certificate=certificate, is_public=True)
    fake.root.mkdir()
    fake.found()
    async with fake.serve():
        yield fake


async def fetched(folder: Path, url: str, commit: str) -> type[SourceRejected] | None:
    """Fetch; how it was refused, as far as that matters to whoever judges."""
    store = GitStore(Path(tempfile.mkdtemp(dir=folder)) / "store")
    try:
        await asyncio.to_thread(store.fetch_commit, url, CommitHash(commit))
    except SourceUnavailable:
        return SourceUnavailable
    except SourceRejected:
        return SourceRejected
    return None


def asking(remote: SilentRemote) -> list[bytes]:
    """Every process of git's that knows the remote."""
    lines = [line for line in command_lines().values() if remote.url.encode() in line]
    return [line for line in lines if line.startswith(b"git") or b"git-remote" in line]


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait in another thread: the server is in this one's loop."""
    await asyncio.to_thread(until, condition, command_lines)


async def test_git_ends_with_whoever_started_it(remote: SilentRemote, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", FETCH, str(tmp_path / "store"), remote.url]) as parent:
        await eventually(lambda: bool(remote.asked))
        # git itself and, at least, the program of its that speaks HTTP.
        assert len(asking(remote)) >= 2
        parent.kill()
    await eventually(lambda: not asking(remote))


async def test_a_fetch_that_takes_too_long_leaves_nothing_behind(
    remote: SilentRemote, tmp_path: Path
) -> None:
    with pytest.raises(SourceUnavailable, match="git fetch did not finish within 10 s"):
        await asyncio.to_thread(GitStore(tmp_path / "store").fetch_commit, remote.url, COMMIT, timeout_s=10.0)
    assert remote.asked
    await eventually(lambda: not asking(remote))


async def test_a_remote_that_falls_silent_is_given_up(
    remote: SilentRemote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.git.LOW_SPEED_S", 1)
    with pytest.raises(SourceUnavailable, match="Operation too slow"):
        await asyncio.to_thread(GitStore(tmp_path / "store").fetch_commit, remote.url, COMMIT)


@pytest.mark.parametrize(
    ("status", "means"),
    [
        *((status, SourceUnavailable) for status in (408, 429, 500, 502, 503, 504)),
        *((status, SourceRejected) for status in (301, 401, 403, 404, 410)),
    ],
)
async def test_a_server_that_fails_is_told_from_one_that_refuses(
    github: FakeGitHub, tmp_path: Path, status: int, means: type[SourceRejected]
) -> None:
    url, commit = f"{github.git_url}/{OWNER}/{NAME}", github.head()
    github.git_status = [status] * 4
    assert await fetched(tmp_path, url, commit) is means
    github.git_status = []
    assert await fetched(tmp_path, url, commit) is None


async def test_a_connection_that_breaks_is_told_from_a_commit_that_is_not_there(
    github: FakeGitHub, tmp_path: Path
) -> None:
    url, commit = f"{github.git_url}/{OWNER}/{NAME}", github.head()
    github.breaks_off = True
    assert await fetched(tmp_path, url, commit) is SourceUnavailable
    github.breaks_off = False
    assert await fetched(tmp_path, url, COMMIT) is SourceRejected
    assert await fetched(tmp_path, f"{github.git_url}/{OWNER}/another", commit) is SourceRejected
    assert await fetched(tmp_path, url, commit) is None


async def test_a_server_that_cannot_be_reached_or_trusted_has_said_nothing(
    github: FakeGitHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in ("https://no-such-host.invalid/a/b", f"https://127.0.0.1:{free_port()}/a/b"):
        assert await fetched(tmp_path, url, COMMIT) is SourceUnavailable
    monkeypatch.delenv("SSL_CERT_FILE")
    assert await fetched(tmp_path, f"{github.git_url}/{OWNER}/{NAME}", github.head()) is SourceUnavailable
