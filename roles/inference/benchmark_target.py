"""A running inference server to measure: a process of its own on a local chain, asked by a validator."""

import asyncio
import contextlib
import io
import json
import os
import random
import signal
import time
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
import tomli_w

from node.chain import LocalChain, Registration
from node.http_client import new_session
from node.ports import free_port
from node.processes import kill_group, module_argv, worker_environment
from node.wallets import HotkeySigner, create_wallet, hotkey_signer
from node.worker_main import PARENT_VARIABLE
from protocol.auth import sign_request
from protocol.errors import QuasarError, WorkerFailed
from protocol.messages import InferenceAnswer
from protocol.types import Coldkey, Hotkey

NETUID: Final = 24
STAKE_TAO: Final = 10_000.0
READY_TIMEOUT_S: Final = 300.0
STOP_PATIENCE_S: Final = 20.0
PROMPT_TOKENS: Final = 128
ORDINARY: Final = 256
"""Prompts are drawn from the first token ids: those of the tiny tokenizer are ordinary."""


@dataclass(slots=True)
class Target:
    """A running server, and the validator that asks it."""

    url: str
    validator: HotkeySigner
    miner: Hotkey
    process: Process
    session: aiohttp.ClientSession
    log: Path
    draw: random.Random = field(default_factory=lambda: random.Random(0))

    async def ask(self, body: bytes) -> tuple[int, bytes, float]:
        """Status, body and seconds of one signed request."""
        headers = {"Content-Type": "application/json"} | sign_request(
            self.validator, method="POST", path="/inference", body=body, receiver=self.miner
        )
        started = time.perf_counter()
        # A stream: aiohttp warns of large bodies that are not.
        sent = io.BytesIO(body)
        async with self.session.post(self.url + "/inference", data=sent, headers=headers) as response:
            answer = await response.read()
        return response.status, answer, time.perf_counter() - started

    async def generate(self, **fields: Any) -> tuple[InferenceAnswer, float]:
        """A valid request's answer and its seconds. Raises QuasarError for any other answer."""
        status, raw, seconds = await self.ask(self.body(**fields))
        if status != 200:
            raise QuasarError(f"the server answered {status}: {raw[:300]!r}")
        return InferenceAnswer.model_validate_json(raw), seconds

    def body(self, **fields: Any) -> bytes:
        """The body of a request with a random prompt, unless `fields` has one."""
        prompt = self.draw.choices(range(ORDINARY), k=PROMPT_TOKENS)
        nonce = f"{self.draw.getrandbits(128):032x}"
        return json.dumps({"prompt": prompt, "nonce": nonce, **fields}).encode()


@asynccontextmanager
async def serving(folder: Path, model: str, device: str, *, max_gen_len: int) -> AsyncIterator[Target]:
    """A server on a local chain with a miner and a validator; QuasarError when it is never ready."""
    miner, validator = (create_wallet(folder / "wallets", name) for name in ("quasar_miner", "validator"))
    LocalChain.create(
        folder / "chain.sqlite",
        block_time_s=12.0,
        netuid=NETUID,
        owner_hotkey=None,
        neurons=[_registration(wallet, permit) for wallet, permit in ((miner, False), (validator, True))],
    )
    port = free_port()
    config = {
        "node": {"device": device, "data_dir": str(folder / "data"), "log_format": "json"},
        "chain": {"network": "local", "netuid": NETUID, "local_state": str(folder / "chain.sqlite")},
        "wallet": {"path": str(folder / "wallets")},
        "inference": {
            "host": "127.0.0.1",
            "port": port,
            "reference_model": model,
            "require_auth": True,
            "max_gen_len": max_gen_len,
        },
    }
    (folder / "config.toml").write_text(tomli_w.dumps(config))
    log = folder / "log"
    process = await _start(folder, log)
    try:
        async with new_session() as session:
            url = f"http://127.0.0.1:{port}"
            target = Target(
                url, hotkey_signer(validator), Hotkey(miner.hotkey.ss58_address), process, session, log
            )
            await _until_ready(target)
            yield target
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_PATIENCE_S):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            kill_group(process)


def _registration(wallet: Any, permit: bool) -> Registration:
    hotkey, coldkey = wallet.hotkey.ss58_address, wallet.coldkeypub.ss58_address
    return Registration(Hotkey(hotkey), Coldkey(coldkey), STAKE_TAO, permit)


async def _start(folder: Path, log: Path) -> Process:
    with log.open("wb") as sink:
        return await asyncio.create_subprocess_exec(
            *module_argv("roles", "--role", "inference", "--config", str(folder / "config.toml")),
            stdin=DEVNULL,
            stdout=sink,
            stderr=STDOUT,
            cwd=folder,
            env={**worker_environment(), PARENT_VARIABLE: str(os.getpid())},
            start_new_session=True,
        )


async def _until_ready(target: Target) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if target.process.returncode is not None:
            break
        with contextlib.suppress(aiohttp.ClientError):
            async with target.session.get(target.url + "/readyz") as response:
                if response.status == 200:
                    return
        await asyncio.sleep(0.2)
    raise WorkerFailed(f"the server was not ready; its log ends with: {target.log.read_text()[-1500:]}")
