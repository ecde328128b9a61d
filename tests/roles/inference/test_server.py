"""The server over real HTTP: answers, refusals, the queue, clients that leave, a worker that dies."""

import asyncio
import base64
import hashlib
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from protocol.errors import ConfigError
from protocol.messages import InferenceAnswer, ModelInfo
from protocol.signing import inference_text, verify_text
from roles.inference import served_model
from roles.inference.server import InferenceServer
from tests.roles.inference.faulty_worker import ANSWERS_LATER
from tests.roles.inference.harness import Running, is_ready, key, local_settings, running, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = [72, 101, 108, 108, 111]
LONG = {"prompt": PROMPT, "gen_len": 600}
"""Takes several slices."""


@pytest.fixture(scope="module")
def miner() -> Any:
    return key("miner")


@pytest.fixture(scope="module")
def model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in a folder of its own."""
    return Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("server") / tiny_model.name))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(model: Path, miner: Any) -> AsyncIterator[Running]:
    settings = local_settings(model, queue_size=2, max_gen_len=1010, max_body_bytes=20_000)
    with pytest.MonkeyPatch.context() as patched:
        # Works as the real one, and can be held up.
        patched.setattr(served_model, "WORKER_MODULE", "tests.roles.inference.faulty_worker")
        async with running(settings, miner) as one:
            yield one


@pytest.fixture
def held(model: Path) -> Iterator[Path]:
    """While the file is there no answer is finished."""
    flag = model / ANSWERS_LATER
    flag.touch()
    yield flag
    flag.unlink(missing_ok=True)


async def test_health_and_info(server: Running) -> None:
    health = await server.get("/health")
    assert health.status == 200
    assert health.body == {"status": "healthy", "model_name": "tiny", "device": "cpu"}
    info = ModelInfo.model_validate((await server.get("/model_info")).body)
    assert (info.vocab_size, info.context_length, info.dtype, info.model_name) == (
        512,
        1024,
        "float32",
        "tiny",
    )
    assert (await server.get("/livez")).status == 200
    assert (await server.get("/readyz")).body == {"status": "ready"}
    metrics = (await server.get("/metrics")).body
    assert "quasar_inference_requests_waiting 0.0" in metrics
    assert "quasar_build_info{" in metrics


async def test_answer_as_the_seed_has_it(server: Running) -> None:
    reply = await server.post(prompt=PROMPT, gen_len=12, logits_at_step=3)
    assert reply.status == 200
    answer = InferenceAnswer.model_validate(reply.body)
    assert len(answer.tokens) == 12
    assert isinstance(answer.captured_logits, list)
    assert int(np.argmax(answer.captured_logits)) == answer.tokens[2]
    assert len(answer.captured_logits) == 512
    assert answer.elapsed_sec > 0
    assert answer.nonce is None
    assert answer.signature is None
    assert (await server.post(prompt=PROMPT, gen_len=12)).body["captured_logits"] is None


async def test_base64_holds_the_same_floats(server: Running) -> None:
    request = {"prompt": PROMPT, "gen_len": 6, "logits_at_step": 6}
    as_list = (await server.post(request)).body
    as_text = (await server.post({**request, "logits_encoding": "base64"})).body
    assert as_list["tokens"] == as_text["tokens"]
    floats = np.frombuffer(base64.b64decode(as_text["captured_logits"]), dtype="<f4")
    np.testing.assert_array_equal(np.asarray(as_list["captured_logits"], dtype=np.float32), floats)


@pytest.mark.parametrize("step", [None, 2])
async def test_answer_is_signed_for_its_nonce(server: Running, miner: Any, step: int | None) -> None:
    nonce = "0123456789abcdef" * 2
    reply = await server.post(
        prompt=PROMPT, gen_len=4, logits_at_step=step, nonce=nonce, logits_encoding="base64"
    )
    captured = reply.body["captured_logits"]
    digest = "" if captured is None else hashlib.sha256(base64.b64decode(captured)).hexdigest()
    assert (captured is None) == (step is None)
    text = inference_text(nonce=nonce, tokens=reply.body["tokens"], captured_logits_sha256=digest)
    verify_text(miner.ss58_address, text, reply.body["signature"])
    assert reply.body["nonce"] == nonce


BAD = [
    ({"prompt": [1, -1], "gen_len": 2}, 422, "prompt[1] is token -1, outside the vocabulary 0..511"),
    ({"prompt": [512], "gen_len": 2}, 422, "prompt[0] is token 512, outside the vocabulary 0..511"),
    ({"prompt": [10**400], "gen_len": 2}, 422, "of 1329 bits, outside the vocabulary"),
    ({"prompt": [], "gen_len": 2}, 422, "prompt"),
    (
        {"prompt": [1] * 1000, "gen_len": 25},
        422,
        "together are 1025 tokens, beyond the model's context of 1024",
    ),
    ({"prompt": [1], "gen_len": 0}, 422, "gen_len"),
    ({"prompt": [1], "gen_len": -3}, 422, "gen_len"),
    ({"prompt": [1], "gen_len": 1011}, 422, "gen_len is 1011: at most 1010 tokens are generated"),
    ({"prompt": [1], "gen_len": 4, "logits_at_step": 0}, 422, "logits_at_step"),
    ({"prompt": [1], "gen_len": 4, "logits_at_step": 5}, 422, "logits_at_step is 5, outside 1..4"),
    ({"prompt": ["1"], "gen_len": 4}, 422, "prompt.0"),
    ({"prompt": [1.5], "gen_len": 4}, 422, "prompt.0"),
    ({"prompt": [True], "gen_len": 4}, 422, "prompt.0"),
    ({"prompt": [[1]], "gen_len": 4}, 422, "prompt.0"),
    ({"prompt": "hello", "gen_len": 4}, 422, "prompt"),
    ({"prompt": [1], "gen_len": "4"}, 422, "gen_len"),
    ({"prompt": [1], "gen_len": 4.5}, 422, "gen_len"),
    ({"prompt": [1]}, 422, "gen_len"),
    ({"prompt": [1], "gen_len": 4, "temperature": 1}, 422, "temperature"),
    ({"prompt": [1], "gen_len": 4, "nonce": "xyz"}, 422, "nonce"),
    ({"prompt": [1], "gen_len": 4, "logits_encoding": "pickle"}, 422, "logits_encoding"),
    ([1, 2, 3], 422, "body"),
    (b'{"prompt": [1], "gen_len"', 400, "the body is not JSON"),
    (b"", 400, "the body is not JSON"),
    (b"\xff\xfe", 400, "the body is not JSON"),
    (b'{"prompt": [' + b"1," * 20_000 + b'1], "gen_len": 1}', 413, "larger than the 20000 bytes allowed"),
]


@pytest.mark.parametrize(("body", "status", "sentence"), BAD)
async def test_bad_input_is_refused_and_the_next_request_works(
    server: Running, body: Any, status: int, sentence: str
) -> None:
    pid = server.server.model.pid
    reply = await server.post(body, headers={"Content-Type": "application/json"})
    assert reply.status == status, reply
    assert sentence in json.dumps(reply.body["detail"])
    assert (await server.post(prompt=PROMPT, gen_len=1)).status == 200
    assert server.server.model.pid == pid


async def test_other_refusals(server: Running) -> None:
    text = await server.post(b"prompt=1", headers={"Content-Type": "text/plain"})
    assert (text.status, text.detail) == (415, "Content-Type must be application/json, not text/plain")
    assert (await server.get("/inference")).status == 405
    assert (await server.get("/other")).detail == "there is no /other here"


async def waiting(server: Running) -> float:
    return server.metrics.values()["quasar_inference_requests_waiting"]


async def is_running(server: Running) -> bool:
    return server.metrics.values()["quasar_inference_requests_running"] == 1


async def is_idle(server: Running) -> bool:
    return not await is_running(server) and not await waiting(server)


async def test_queue_is_bounded_and_in_order(server: Running, held: Path) -> None:
    finished: list[int] = []

    async def ask(number: int) -> int:
        status = (await server.post(LONG)).status
        finished.append(number)
        return status

    tasks = [asyncio.create_task(ask(0))]
    await until(lambda: is_running(server))
    for number in (1, 2):
        tasks.append(asyncio.create_task(ask(number)))

        async def is_waiting(number: int = number) -> bool:
            return await waiting(server) == number

        await until(is_waiting)
    refused = await server.post(prompt=PROMPT, gen_len=1)
    assert refused.status == 429
    assert "2 requests are waiting already" in refused.detail
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    held.unlink()
    assert await asyncio.gather(*tasks) == [200, 200, 200]
    assert finished == [0, 1, 2]


async def test_client_that_leaves_frees_its_slot_and_spares_the_worker(server: Running, held: Path) -> None:
    pid = server.server.model.pid
    running_one = asyncio.create_task(server.post(LONG))
    await until(lambda: is_running(server))
    waiting_one = asyncio.create_task(server.post(LONG))
    await until(lambda: waiting(server))
    waiting_one.cancel()

    async def nobody_waits() -> bool:
        return not await waiting(server)

    await until(nobody_waits)
    assert not running_one.done()
    running_one.cancel()
    await until(lambda: is_idle(server))
    held.unlink()
    assert (await server.post(prompt=PROMPT, gen_len=2)).status == 200
    assert server.server.model.pid == pid


async def test_client_that_closes_at_once(server: Running) -> None:
    body = json.dumps(LONG).encode()
    for cut in (len(body), 10):
        _reader, writer = await asyncio.open_connection("127.0.0.1", server.server.port)
        head = "POST /inference HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:cut])
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    assert (await server.post(prompt=PROMPT, gen_len=1)).status == 200
    await until(lambda: is_idle(server))


async def test_killed_worker_is_replaced(server: Running, held: Path) -> None:
    old = server.server.model.pid
    assert old is not None
    held.unlink()
    expected = (await server.post(prompt=PROMPT, gen_len=8)).body["tokens"]
    held.touch()
    running_one = asyncio.create_task(server.post(LONG))
    await until(lambda: is_running(server))
    os.kill(old, signal.SIGKILL)
    cut = await running_one
    held.unlink()
    assert cut.status == 503
    assert cut.detail == "the model's process ended and is being replaced: try again"
    refused = await server.post(prompt=PROMPT, gen_len=1)
    assert refused.status == 503
    assert "Retry-After" in refused.headers
    assert (await server.get("/health")).body["status"] == "loading"
    assert (await server.get("/readyz")).status == 503
    assert (await server.get("/livez")).status == 200
    await until(lambda: is_ready(server), 240.0)
    assert server.server.model.pid != old
    assert (await server.post(prompt=PROMPT, gen_len=8)).body["tokens"] == expected


async def test_deadline_is_kept_and_spares_the_worker(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = server.server.model.pid
    short = server.server._settings.model_copy(update={"request_deadline_s": 0.05})
    monkeypatch.setattr(server.server, "_settings", short)
    reply = await server.post(LONG)
    assert reply.status == 503
    assert "not finished within 0.05 s: ask for fewer tokens" in reply.detail
    monkeypatch.undo()
    assert (await server.post(prompt=PROMPT, gen_len=2)).status == 200
    assert server.server.model.pid == pid


async def test_model_that_cannot_be_loaded_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # While it is tried again it is loading again.
    monkeypatch.setattr("roles.inference.served_model.RETRY_START_S", 3600.0)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    async with running(local_settings(tmp_path), None, wait=False) as one:

        async def has_failed() -> bool:
            return bool((await one.get("/health")).body["status"] == "failed")

        assert (await one.get("/health")).body["status"] == "loading"
        assert (await one.post(prompt=[1], gen_len=1)).status == 503
        await until(has_failed, 240.0)
        refused = await one.post(prompt=[1], gen_len=1)
        assert refused.status == 503
        assert "cannot be loaded" in refused.detail
        assert (await one.get("/readyz")).status == 503
        assert (await one.get("/model_info")).status == 503


async def test_impossible_settings_are_refused_before_anything_starts(
    tmp_path: Path, tiny_model: Path
) -> None:
    with pytest.raises(ConfigError, match="is no folder with a config"):
        InferenceServer(local_settings(tmp_path / "absent"), None, None)
    with pytest.raises(ConfigError, match="require_auth needs the miner's hotkey and the chain"):
        InferenceServer(local_settings(tiny_model, require_auth=True), None, None)
