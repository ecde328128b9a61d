"""`quasar-node --role inference` as a process of its own."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import tomli_w

from node.chain import LocalChain, Registration
from node.ports import free_port
from node.settings_model import Settings
from node.wallets import create_wallet
from protocol.auth import sign_request
from protocol.errors import UsageError
from protocol.signing import inference_text, verify_text
from protocol.types import Coldkey, Hotkey
from roles.commands.verify_inference import CHALLENGES, verify_inference
from tests.roles.inference.harness import until

NETUID = 24


def write_config(folder: Path, model: Path, port: int, **tables: dict[str, Any]) -> Path:
    config: dict[str, dict[str, Any]] = {
        "node": {"device": "cpu", "data_dir": str(folder / "data"), "log_format": "json", "drain_s": 120.0},
        "chain": {"network": "local", "netuid": NETUID},
        "wallet": {"path": str(folder / "wallets")},
        "inference": {"host": "127.0.0.1", "port": port, "reference_model": str(model)},
    }
    for name, table in tables.items():
        config[name] |= table
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(config))
    return path


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "roles", "--role", "inference", "--config", str(config)]


def environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}


def end_of(config: Path) -> tuple[int, str]:
    """Exit code and last line of a start that must fail."""
    ended = subprocess.run(
        command(config), capture_output=True, text=True, timeout=280, cwd=config.parent, env=environment()
    )
    assert "Traceback" not in ended.stderr
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


@contextmanager
def process(config: Path) -> Iterator[subprocess.Popen[str]]:
    with (config.parent / "log").open("w") as log:
        child = subprocess.Popen(
            command(config), stderr=log, stdout=log, text=True, cwd=config.parent, env=environment()
        )
        try:
            yield child
        finally:
            child.kill()
            child.wait()


def make_subnet(folder: Path) -> tuple[Any, Any]:
    """A local chain with a miner and a validator, and their wallets."""
    miner, validator = (
        create_wallet(folder / "wallets", f"quasar_{role}") for role in ("miner", "validator")
    )
    LocalChain.create(
        folder / "chain.sqlite",
        block_time_s=0.25,
        netuid=NETUID,
        owner_hotkey=None,
        neurons=[
            Registration(
                Hotkey(wallet.hotkey.ss58_address),
                Coldkey(wallet.coldkeypub.ss58_address),
                1000.0,
                has_permit,
            )
            for wallet, has_permit in ((miner, False), (validator, True))
        ],
    )
    return miner, validator


async def verify(config: Path, url: str) -> tuple[int, str, str]:
    """Exit code, output and last words of the miner's own check of its server."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "roles", "verify", "--inference", url, "--json", "--config", str(config)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=config.parent,
        env=environment(),
    )
    output, errors = await child.communicate()
    assert child.returncode is not None
    return child.returncode, output.decode(), errors.decode()


async def test_verify_tells_another_model_and_a_server_that_is_off(
    tmp_path: Path, tiny_model: Path, other_model: Path
) -> None:
    make_subnet(tmp_path)
    port = free_port()
    (tmp_path / "verifier").mkdir()
    wallets = {"path": str(tmp_path / "wallets")}
    verifying = write_config(tmp_path / "verifier", tiny_model, 0, wallet=wallets)
    url = f"http://127.0.0.1:{port}"
    code, shown, _ = await verify(verifying, url)
    assert code == 1
    assert {result["outcome"] for result in json.loads(shown)} == {"pending"}
    assert "not reachable" in json.loads(shown)[0]["reason"]

    with process(write_config(tmp_path, other_model, port)) as child:
        async with aiohttp.ClientSession() as session:

            async def is_ready() -> bool:
                assert child.poll() is None, (tmp_path / "log").read_text()
                try:
                    async with session.get(url + "/readyz") as response:
                        return response.status == 200
                except aiohttp.ClientError:
                    return False

            await until(is_ready, 240.0)
        code, shown, _ = await verify(verifying, url)
    assert code == 1
    results = json.loads(shown)
    assert {result["outcome"] for result in results} == {"failed"}
    assert "are not the reference's" in results[0]["reason"]


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("127.0.0.1:8001", "must be like http://127.0.0.1:8001"),
        ("ftp://127.0.0.1", "must be like http://127.0.0.1:8001"),
        ("http://127.0.0.1:99999", "99999"),
        ("http://127.0.0.1:8001/health", "leave out what follows the port"),
        ("http://127.0.0.1:8001/?a=1", "leave out what follows the port"),
    ],
)
def test_verify_explains_an_address_that_makes_no_sense(url: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        verify_inference(url, Settings(), as_json=True)


async def test_answers_validators_and_drains(tmp_path: Path, tiny_model: Path) -> None:
    miner, validator = make_subnet(tmp_path)
    port = free_port()
    config = write_config(
        tmp_path,
        tiny_model,
        port,
        chain={"local_state": str(tmp_path / "chain.sqlite")},
        inference={"require_auth": True},
    )
    url = f"http://127.0.0.1:{port}"
    with process(config) as child:
        async with aiohttp.ClientSession() as session:

            async def answers(path: str) -> bool:
                assert child.poll() is None, (tmp_path / "log").read_text()
                try:
                    async with session.get(url + path) as response:
                        return response.status == 200
                except aiohttp.ClientError:
                    return False

            async def ask(wallet: Any, gen_len: int) -> tuple[int, dict[str, Any]]:
                body = json.dumps({"prompt": [1, 2, 3], "gen_len": gen_len, "nonce": "ab" * 16}).encode()
                headers = sign_request(
                    wallet.hotkey,
                    method="POST",
                    path="/inference",
                    body=body,
                    receiver=miner.hotkey.ss58_address,
                )
                headers["Content-Type"] = "application/json"
                async with session.post(url + "/inference", data=body, headers=headers) as response:
                    return response.status, await response.json()

            await until(lambda: answers("/health"), 240.0)
            await until(lambda: answers("/readyz"), 240.0)
            status, answer = await ask(validator, 2)
            assert status == 200
            text = inference_text(nonce="ab" * 16, tokens=answer["tokens"], captured_logits_sha256="")
            verify_text(miner.hotkey.ss58_address, text, answer["signature"])
            status, refusal = await ask(create_wallet(tmp_path / "wallets", "stranger"), 2)
            assert (status, "has no validator permit" in refusal["detail"]) == (403, True)

            code, shown, _ = await verify(config, url)
            assert code == 0
            results = json.loads(shown)
            assert len(results) == CHALLENGES
            assert {result["outcome"] for result in results} == {"passed"}
            assert all(result["cosine_similarity"] > 0.9999 for result in results)

            long = asyncio.create_task(ask(validator, 1000))

            async def has_come() -> bool:
                async with session.get(url + "/metrics") as response:
                    running = "quasar_inference_requests_running 1.0" in await response.text()
                # Answered already, where nobody looked for a second: nothing is left to drain.
                return running or long.done()

            await until(has_come, 60.0)
            child.send_signal(signal.SIGTERM)
            status, answer = await long
            assert status == 200
            assert len(answer["tokens"]) == 1000
            assert await asyncio.to_thread(child.wait, 120) == 0
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert all(json.loads(line) for line in log.splitlines())


def test_no_gpu_is_one_sentence(tmp_path: Path, tiny_model: Path) -> None:
    config = write_config(tmp_path, tiny_model, 0, node={"device": "cuda:9"})
    code, sentence = end_of(config)
    assert code == 78
    assert sentence.startswith('quasar-node: device "cuda:9" but ')


def test_missing_model_folder_is_one_sentence(tmp_path: Path) -> None:
    code, sentence = end_of(write_config(tmp_path, tmp_path / "absent", 0))
    assert (code, "is no folder with a config.json" in sentence) == (78, True)


def test_missing_wallet_matters_where_requests_are_authenticated(tmp_path: Path, tiny_model: Path) -> None:
    code, sentence = end_of(write_config(tmp_path, tiny_model, 0, inference={"require_auth": True}))
    assert code == 78
    assert "wallet folder" in sentence


def test_port_in_use_is_one_sentence(tmp_path: Path, tiny_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = end_of(write_config(tmp_path, tiny_model, port))
    assert code == 69
    assert f"port {port} on 127.0.0.1 is in use" in line
