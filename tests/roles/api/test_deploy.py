"""The examples for operators: nginx before two replicas, the systemd unit, backups of PostgreSQL."""

import asyncio
import json
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
from pydantic import SecretStr

from node.ports import free_port
from node.settings_model import Settings
from tests.requirements import missing
from tests.roles.api.harness import Client, Code, Subnet, running, submit_message, until, with_api
from tests.roles.postgres import PostgresServer

DEPLOY = Path(__file__).parents[3] / "deploy" / "api"


def needed(program: str, package: str) -> str:
    """The program; without it the test is skipped, and fails in CI."""
    found = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        missing(f"{program} is not installed (Debian: apt-get install {package})")
    return found


@asynccontextmanager
async def nginx(folder: Path, first: int, second: int) -> AsyncIterator[str]:
    """nginx with the example's configuration, on a free port."""
    program, port = needed("nginx", "nginx"), free_port()
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in (("8101", first), ("8102", second)):
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    (folder / "quasar.conf").write_text(text.replace("listen 80;", f"listen 127.0.0.1:{port};"))
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user}daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}include {folder}/quasar.conf;\n}}\n"
    )
    command = (program, "-e", str(folder / "error.log"), "-c", str(folder / "nginx.conf"))
    checked = await asyncio.create_subprocess_exec(*command, "-t", stderr=asyncio.subprocess.PIPE)
    _, said = await checked.communicate()
    assert checked.returncode == 0, said.decode()
    process = await asyncio.create_subprocess_exec(*command)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        await process.wait()


async def test_nginx_before_two_replicas(replicated: Settings, subnet: Subnet, tmp_path: Path) -> None:
    """Callers are told apart by their own address, and one replica may go while the other serves."""
    behind = with_api(replicated, trusted_proxies=("127.0.0.1",), writes_per_minute_per_ip=3)
    async with AsyncExitStack() as stack, running(behind) as second, aiohttp.ClientSession() as session:
        first = await stack.enter_async_context(running(behind))
        ports = (int(api.url.rsplit(":", 1)[1]) for api in (first, second))
        async with nginx(tmp_path, *ports) as url:
            front = Client(url, session, hotkey=first.hotkey)

            async def answers() -> bool:
                try:
                    return (await front.get("/health")).status == 200
                except aiohttp.ClientError:
                    return False

            await until(answers, timeout_s=120)
            await front.submit(subnet.miner, Code())
            lease = await front.lease(subnet.validator)
            assert lease is not None
            assert (await front.judge(subnet.validator, lease)).status == 200
            # A made-up X-Forwarded-For makes nobody another caller.
            statuses = []
            body = submit_message(subnet.rival, Code()).model_dump_json().encode()
            for number in range(4):
                headers = {"Content-Type": "application/json", "X-Forwarded-For": f"198.51.100.{number}"}
                statuses.append((await front.send("POST", "/submit_kernel", body, headers)).status)
            assert statuses == [200, 200, 429, 429]
            assert (await front.post("/submit_kernel", b" " * 70_000)).status == 413
            await stack.aclose()
            for _ in range(20):
                assert (await front.get("/health")).status == 200
            assert (await front.get("/leaderboard")).status == 200


def test_unit_is_sound() -> None:
    unit = (DEPLOY / "quasar-api@.service").read_text()
    assert "RestartPreventExitStatus=2 77 78" in unit
    assert "Type=notify" in unit
    [start] = re.findall(r"^ExecStart=\S+/quasar-node (.*)$", unit, re.MULTILINE)
    assert start.startswith("--role api")
    program = needed("systemd-analyze", "systemd")
    result = subprocess.run(
        [program, "verify", "--man=no", str(DEPLOY / "quasar-api@.service")],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    complaints = [
        line
        for line in result.stderr.splitlines()
        # The program is where an operator installs it, and not here.
        if "quasar-api@" in line and "is not executable" not in line
    ]
    assert complaints == []


async def test_postgresql_backup_and_restore(
    postgres: PostgresServer, replicated: Settings, subnet: Subnet, tmp_path: Path
) -> None:
    """The commands of the documentation: pg_dump while the API runs, pg_restore into an empty database."""
    dump = tmp_path / "quasar.dump"
    secret = replicated.api.database_url
    assert secret is not None
    async with running(replicated) as api:
        submitted = await api.submit(subnet.miner, Code())
        await _run("pg_dump", "--format=custom", f"--file={dump}", secret.get_secret_value())
        await api.submit(subnet.rival, Code("after the backup"))
    url = postgres.url(postgres.create_database())
    await _run("pg_restore", "--no-owner", f"--dbname={url}", str(dump))
    async with running(with_api(replicated, database_url=SecretStr(url))) as api:
        shown = (await api.get("/submissions")).body
        assert [row["submission_id"] for row in shown] == [submitted.submission_id]
        assert (await api.submit(subnet.sibling, Code("goes on"))).submission_id == 2


async def _run(program: str, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        needed(program, "postgresql-client"), *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode == 0, json.dumps(said.decode())
