"""The pages for miners, run: every command as it stands there, in order, on a subnet of this machine.

What a CPU cannot do in a moment is made smaller: sequence lengths, searches, the wait before a reveal.
"""

import asyncio
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from node.settings import load_settings
from roles.devnet.layout import Layout, Scale, prepare
from roles.devnet.processes import Processes
from roles.inference.tiny_model import write_tiny_model
from tests.acceptance.subnet import change, until_up

ROOT = Path(__file__).parents[2]
BLOCKS = re.compile(r"^```(bash|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALLER = ((r"--seq-len \d+", "--seq-len 64"), (r"--time-limit \d+", "--time-limit 1"))
PATIENCE_S = 240
DOCTOR_CODES = (0, 78)
"""A machine of a test lacks this or that: the doctor says so, and that is what it is for."""

pytestmark = [pytest.mark.timeout(1200), pytest.mark.usefixtures("sandbox")]


class Reader:
    """Somebody who types what a page says, in a fresh clone whose subnet is on this machine."""

    def __init__(self, folder: Path, layout: Layout, env: dict[str, str]) -> None:
        self.folder = folder
        self.layout = layout
        self.env = env
        self.running: list[subprocess.Popen[bytes]] = []

    async def follow(self, page: str) -> None:
        """Run the page's commands from top to bottom."""
        for kind, block in BLOCKS.findall((ROOT / "docs" / page).read_text()):
            if kind == "toml":
                self.load(block)
                continue
            for is_role, commands in itertools.groupby(block.splitlines(), lambda line: "--role" in line):
                if is_role:
                    await self.start_roles(list(commands))
                    continue
                for command in commands:
                    await self.type(command)

    def load(self, block: str) -> None:
        """Settings that a page shows are settings."""
        file = self.folder / "shown.toml"
        file.write_text(block)
        load_settings({}, config_file=file, env={})

    async def type(self, command: str) -> None:
        """Run one command and see it succeed."""
        words = shlex.split(command)
        if words[0] == "make":
            # What a fresh clone runs first, continuous integration runs first.
            assert command in (ROOT / ".ci/run").read_text(), f"CI does not run {command!r}"
            return
        if "--inference" in words:
            # Run by tests/roles/inference/test_wiring.py and tests/roles/commands/test_bench_inference.py.
            return
        if Path(words[0]).name == "btcli":
            # It goes to a public chain; tests/test_docs.py sees that it knows the command.
            return
        for pattern, small in SMALLER:
            command = re.sub(pattern, small, command)
        command = command.replace("http://localhost:8000", self.layout.api_url)
        if words[0] == "curl" and shutil.which("curl") is None:
            await self.fetch(command.split()[2], self.folder / words[-1])
            return
        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            timeout=PATIENCE_S,
        )
        allowed = DOCTOR_CODES if "doctor" in words else (0,)
        assert done.returncode in allowed, f"{command}:\n{done.stdout.decode()}\n{done.stderr.decode()}"

    async def fetch(self, url: str, target: Path) -> None:
        """What curl would do, where there is none."""
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            response.raise_for_status()
            target.write_bytes(await response.read())

    async def start_roles(self, commands: list[str]) -> None:
        """Start nodes side by side, once those before have ended, and wait for what they are for."""
        self.stop()
        logs = []
        for number, command in enumerate(commands):
            # Whichever is free: others may run this at the same time.
            command = command.replace("inference.port=8002", "inference.port=0")
            log = self.folder / f"log-{len(list(self.folder.glob('log-*')))}-{number}"
            with log.open("wb") as stream:
                self.running.append(
                    subprocess.Popen(
                        ["bash", "-c", f"exec env {command}"],
                        cwd=self.folder,
                        env=self.env,
                        stdout=stream,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            logs.append(log)
        for command, log in zip(commands, logs, strict=True):
            await self.wait_for(what_it_is_for(command, len(commands)), log)
        if len(commands) > 1:
            await self.see_side_by_side(len(commands))

    async def wait_for(self, word: str, log: Path) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while word not in log.read_text(errors="replace"):
                assert all(process.poll() is None for process in self.running), log.read_text(
                    errors="replace"
                )
                await asyncio.sleep(0.1)

    async def see_side_by_side(self, count: int) -> None:
        """Each runs with its own places, and `status` shows all."""
        async with asyncio.timeout(PATIENCE_S):
            while len(list(self.folder.glob("data-*/status.json"))) < count:
                assert all(process.poll() is None for process in self.running), self.logs()
                await asyncio.sleep(0.1)
        command = [".venv/bin/quasar-node", "status", "--data-dir", "data-first"]
        shown = await asyncio.to_thread(
            subprocess.run, command, cwd=self.folder, env={**self.env, "COLUMNS": "200"}, capture_output=True
        )
        for process in self.running:
            assert f" {process.pid} ".encode() in shown.stdout

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in self.folder.glob("log-*"))

    def stop(self) -> None:
        """Ctrl-C, as a person would; every node ends well."""
        for process in self.running:
            process.send_signal(signal.SIGINT)
        for process in self.running:
            assert process.wait(timeout=60) == 0
        self.running = []

    def end(self) -> None:
        """Leave nothing behind."""
        for process in self.running:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def what_it_is_for(command: str, side_by_side: int) -> str:
    """What the log of a node says when the page goes on."""
    if "inference" in command:
        return "model loaded"
    if "proposer=files" in command:
        return "submission revealed"
    return "submission judged" if side_by_side == 1 else "starting"


@pytest.fixture
async def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reader]:
    """A subnet of an API and a validator, and a fresh clone beside it."""
    layout = prepare(tmp_path / "devnet", scale=Scale.short(), device="cpu")
    write_tiny_model(layout.model)
    evaluation: dict[str, Any] = {"trials_min": 1, "trials_max": 1, "max_sequence_length": 64}
    change(layout.api, api={"blocks_until_reveal": 20})
    change(layout.validator, evaluation=evaluation)
    processes = Processes()
    reader = Reader(fresh_clone(tmp_path), layout, environment(tmp_path, layout))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    try:
        await processes.start(layout.api)
        await until_up(layout.api_url)
        await processes.start(layout.validator)
        yield reader
    finally:
        reader.end()
        await processes.stop()


def fresh_clone(tmp_path: Path) -> Path:
    """A folder with the files that the pages name and the program where `make install` puts it."""
    folder = tmp_path / "clone"
    (folder / ".venv/bin").mkdir(parents=True)
    shutil.copy(ROOT / ".env.example", folder)
    program = folder / ".venv/bin/quasar-node"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m roles "$@"\n'
    )
    program.chmod(0o755)
    return folder


def environment(tmp_path: Path, layout: Layout) -> dict[str, str]:
    """Where this machine's subnet is; what somebody would have in `.env`."""
    hotkeys = layout.root / "wallets"
    own = hotkeys / layout.fast.name / "hotkeys"
    for name, member in (("first", layout.fast), ("second", layout.slow)):
        shutil.copy(hotkeys / member.name / "hotkeys/default", own / name)
        public = hotkeys / member.name / "hotkeys/defaultpub.txt"
        if public.exists():
            shutil.copy(public, own / f"{name}pub.txt")
    config = tomllib.loads(layout.fast.config_file.read_text())
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "DEVICE": "cpu",
        "SUBTENSOR_NETWORK": "local",
        "QUASAR_CHAIN__LOCAL_STATE": str(layout.chain_file),
        "WALLET_PATH": str(hotkeys),
        "QUASAR_WALLET__NAME": layout.fast.name,
        "VALIDATOR_API_URL": layout.api_url,
        "QUASAR_MINER__FORK_REMOTE": config["miner"]["fork_remote"],
        "QUASAR_MINER__TUNER_BUDGET_S": "1",
        "QUASAR_MINER__POLL_S": "0.5",
        "QUASAR_MINER__CLAIM_FRACTION": "0.2",
        "AGENT_ITERATIONS": "1",
        "OPTIMIZATION_INTERVAL": "0",
        "MINER_INFERENCE_PORT": "0",
        "REFERENCE_MODEL": str(layout.model),
        "QUASAR_NODE__METRICS_PORT": "0",
        "QUASAR_EVALUATION__MAX_SEQUENCE_LENGTH": "64",
        "QUASAR_EVALUATION__TRIALS_MIN": "1",
        "QUASAR_EVALUATION__TRIALS_MAX": "1",
    }


async def test_newcomer_comes_from_nothing_to_a_first_reveal(reader: Reader) -> None:
    await reader.follow("mine.md")


async def test_idea_becomes_a_verified_submission(reader: Reader) -> None:
    await reader.follow("write-a-kernel.md")
