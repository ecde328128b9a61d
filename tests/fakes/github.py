"""GitHub as a miner sees it: the documented API, and git over HTTPS by git's own http-backend.

Source: docs.github.com/en/rest (users, repos, forks, branches, rate limits); git-http-backend(1).
"""

import asyncio
import base64
import ipaddress
import os
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

OWNER, NAME, USER = "original", "flash-linear-attention", "miner"
TOKEN = "ghp_token_of_the_miner"
_AT_REST = ("-c", "maintenance.auto=false")
"""Newer versions of git would go on by themselves in a repository that is copied or removed."""


@dataclass
class FakeGitHub:
    """One upstream repository, one user; faults are switched on by a test."""

    root: Path
    certificate: Path
    user: str = USER
    accepted_token: str | None = TOKEN
    may_fork: bool = True
    may_push: bool = True
    not_ready: int = 0
    """How many more times a fork that was asked for is not there yet."""
    api_answers: list[web.Response] = field(default_factory=list)
    """Given to the next API requests in place of the real answers."""
    git_status: list[int] = field(default_factory=list)
    """Given to the next git requests."""
    is_public: bool = False
    """Anybody may read."""
    breaks_off: bool = False
    """A pack ends in the middle, and the connection with it."""
    seen: list[str] = field(default_factory=list)
    api_url: str = ""
    git_url: str = ""

    def repository(self, owner: str) -> Path:
        """Where a repository lies."""
        return self.root / owner / f"{NAME}.git"

    def branches(self) -> dict[str, str]:
        """What the fork's branches are at."""
        command = ["git", "for-each-ref", "--format=%(refname:short) %(objectname)"]
        done = subprocess.run(
            command, cwd=self.repository(self.user), capture_output=True, text=True, check=True
        )
        return dict(line.split(" ") for line in done.stdout.splitlines())

    def protect(self, branch: str) -> None:
        """Refuse pushes to a branch, in GitHub's words."""
        hook = self.repository(self.user) / "hooks/update"
        hook.write_text(
            f'#!/bin/sh\n[ "$1" = refs/heads/{branch} ] || exit 0\n'
            f'echo "error: GH006: Protected branch update failed for refs/heads/{branch}." >&2\nexit 1\n'
        )
        hook.chmod(0o755)

    def found(self) -> None:
        """Make the upstream repository with one commit."""
        bare = self.repository(OWNER)
        work = self.root / "work"
        _git("init", "--quiet", "--bare", "--initial-branch=main", str(bare), cwd=self.root)
        _git("init", "--quiet", "--initial-branch=main", str(work), cwd=self.root)
        (work / "README.md").write_text("the original\n")
        commit(work, "upstream")
        _git("push", "--quiet", str(bare), "main", cwd=work)

    def head(self) -> str:
        """The upstream repository's commit."""
        return _git("rev-parse", "main", cwd=self.repository(OWNER))

    def fork(self) -> None:
        """What GitHub does some time after a fork was asked for."""
        target = self.repository(self.user)
        shutil.copytree(self.repository(OWNER), target)
        _git("config", "http.receivepack", "true", cwd=target)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """The API on HTTP at loopback, git on HTTPS."""
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/user", self._user)
        app.router.add_get("/repos/{owner}/{name}", self._repository)
        app.router.add_get("/repos/{owner}/{name}/branches/{branch}", self._branch)
        app.router.add_post("/repos/{owner}/{name}/forks", self._forks)
        app.router.add_route(
            "*", "/{owner}/{name}/{path:info/refs|git-upload-pack|git-receive-pack}", self._smart
        )
        runner = web.AppRunner(app)
        await runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        sites = [
            web.TCPSite(runner, "127.0.0.1", 0),
            web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context),
        ]
        for site in sites:
            await site.start()
        ports = [address[1] for address in runner.addresses]
        self.api_url, self.git_url = f"http://127.0.0.1:{ports[0]}", f"https://127.0.0.1:{ports[1]}"
        try:
            yield
        finally:
            await runner.cleanup()

    @property
    def fork_url(self) -> str:
        """Where git finds the fork."""
        return f"{self.git_url}/{self.user}/{NAME}"

    def _refuse(self, request: web.Request) -> web.Response | None:
        self.seen.append(f"{request.method} {request.path}")
        if self.api_answers:
            return self.api_answers.pop(0)
        if request.headers.get("Authorization") != f"Bearer {self.accepted_token}":
            return web.json_response({"message": "Bad credentials"}, status=401)
        return None

    async def _user(self, request: web.Request) -> web.Response:
        return self._refuse(request) or web.json_response({"login": self.user})

    async def _repository(self, request: web.Request) -> web.Response:
        if refusal := self._refuse(request):
            return refusal
        owner = request.match_info["owner"]
        if owner == self.user and self.repository(OWNER).exists() and self.not_ready > 0:
            self.not_ready -= 1
            if self.not_ready == 0:
                self.fork()
        if not self.repository(owner).exists():
            return web.json_response({"message": "Not Found"}, status=404)
        origin = {"full_name": f"{OWNER}/{NAME}"}
        document = {"full_name": f"{owner}/{NAME}", "default_branch": "main", "fork": owner != OWNER}
        return web.json_response(document | ({"parent": origin} if owner != OWNER else {}))

    async def _branch(self, request: web.Request) -> web.Response:
        return self._refuse(request) or web.json_response({"name": "main", "protected": False})

    async def _forks(self, request: web.Request) -> web.Response:
        if refusal := self._refuse(request):
            return refusal
        if not self.may_fork:
            message = "Resource not accessible by personal access token"
            return web.json_response({"message": message}, status=403)
        self.not_ready = max(2, self.not_ready)
        return web.json_response({"full_name": f"{self.user}/{NAME}"}, status=202)

    async def _smart(self, request: web.Request) -> web.StreamResponse:
        """Git's smart protocol through its own CGI program."""
        self.seen.append(f"git {request.method} {request.rel_url}")
        if self.git_status:
            return web.Response(status=self.git_status.pop(0))
        expected = base64.b64encode(f"x-access-token:{self.accepted_token}".encode()).decode()
        is_read = "receive-pack" not in str(request.rel_url)
        if request.headers.get("Authorization") != f"Basic {expected}" and not (self.is_public and is_read):
            return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="GitHub"'})
        if not self.may_push and not is_read:
            return web.Response(status=403, text="Permission to miner/x denied to miner.")
        owner, name, path = (request.match_info[part] for part in ("owner", "name", "path"))
        env = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": f"/{owner}/{name}.git/{path}",
            "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "REMOTE_USER": self.user,
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding", ""),
        }
        body = await request.read()
        process = await asyncio.create_subprocess_exec(
            "git", *_AT_REST, "-c", "safe.directory=*", "http-backend",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env | {"CONTENT_LENGTH": str(len(body))},
        )  # fmt: skip
        output, _ = await process.communicate(body)
        head, _, content = output.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        status = int(headers.pop("Status", "200").split(" ")[0])
        if self.breaks_off and b"PACK" in content:
            return await _half(request, headers, content)
        return web.Response(status=status, headers=headers, body=content)


async def _half(request: web.Request, headers: dict[str, str], content: bytes) -> web.StreamResponse:
    """Send the first half of an answer and leave."""
    answer = web.StreamResponse(headers=headers)
    answer.content_length = len(content)
    await answer.prepare(request)
    await answer.write(content[: len(content) // 2])
    raise ConnectionResetError("as it was told to")


def commit(work: Path, message: str) -> str:
    """Commit a work tree as somebody; the hash."""
    _git("add", "--all", cwd=work)
    _git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", message, cwd=work)
    return _git("rev-parse", "HEAD", cwd=work)


def _git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["git", *_AT_REST, *arguments], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def write_certificate(path: Path) -> None:
    """A certificate for 127.0.0.1 that signs itself, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
