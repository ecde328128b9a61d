"""What only a GPU can show: captured graphs, their memory, and a context that is beyond repair."""

import asyncio
import random
from pathlib import Path

import pytest
import torch

from node.chain.interface import AxonAddress
from protocol.logits import compare_logits, first_wrong, logits_match
from protocol.verdicts import LogitOutcome
from roles.inference import served_model
from roles.inference.decoding import Generation, PlainDecoder
from roles.inference.engine import Engine, OutOfDeviceMemory
from roles.inference.graph_decoding import StaticDecoder
from roles.inference.tiny_model import BYTE_TOKENS, CONTEXT_LENGTH
from roles.validator.logits import LogitVerifier
from tests.roles.inference.faulty_worker import POISON
from tests.roles.inference.harness import is_ready, key, local_settings, running, until

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda:0"
LENGTHS = [
    (1, 5),
    (16, 3),
    (100, 200),
    (127, 130),
    (128, 1),
    (129, 128),
    (250, 12),
    (512, 40),
    (700, 100),
    (1000, 24),
]
"""Prompt and answer: both sides of every padding, and answers that outgrow their window once or twice."""


def drawn(length: int) -> list[int]:
    return random.Random(length).choices(range(BYTE_TOKENS), k=length)


def finish(decoder: Engine | PlainDecoder, prompt: list[int], gen_len: int, step: int | None) -> Generation:
    decoder.begin(prompt, gen_len, step)
    answer = decoder.advance(float("inf"))
    assert answer is not None
    return answer


def warm(model: Path, dtype: str) -> Engine:
    engine = Engine.load(str(model), DEVICE, dtype=dtype)  # type: ignore[arg-type]
    for _ in engine.warm_up():
        pass
    assert (engine.decoding, engine.warning) == ("cuda graphs", None)
    return engine


@pytest.fixture(scope="module")
def single(tiny_model: Path) -> Engine:
    return warm(tiny_model, "float32")


@pytest.fixture(scope="module")
def half(tiny_model: Path) -> Engine:
    return warm(tiny_model, "auto")


@pytest.mark.parametrize(("length", "gen_len"), LENGTHS)
def test_graphs_give_the_plain_loops_tokens(single: Engine, length: int, gen_len: int) -> None:
    plain = finish(PlainDecoder(single.model, torch.device(DEVICE)), drawn(length), gen_len, gen_len)
    graphs = finish(single, drawn(length), gen_len, gen_len)
    assert graphs.tokens == plain.tokens
    assert graphs.captured_logits is not None
    assert plain.captured_logits is not None
    torch.testing.assert_close(graphs.captured_logits, plain.captured_logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("length", "gen_len"), LENGTHS)
def test_graphs_in_float16_pass_verification(half: Engine, single: Engine, length: int, gen_len: int) -> None:
    answer = finish(half, drawn(length), gen_len, gen_len)
    read = single.examine(drawn(length), answer.tokens, gen_len)
    assert answer.captured_logits is not None
    assert logits_match(compare_logits(read.logits, answer.captured_logits.numpy()))
    assert first_wrong(read.gaps, 0.1) is None


def test_equal_requests_give_equal_answers_whatever_came_between(half: Engine) -> None:
    first = finish(half, drawn(100), 300, 250)
    finish(half, drawn(900), 100, 1)
    half.begin(drawn(300), 50, 50)
    assert half.advance(0.0) is None
    again = finish(half, drawn(100), 300, 250)
    assert first.tokens == again.tokens
    assert first.captured_logits is not None
    assert again.captured_logits is not None
    assert torch.equal(first.captured_logits, again.captured_logits)


def test_fused_steps_are_the_steps(single: Engine, tiny_model: Path) -> None:
    unfused = StaticDecoder(single.model, torch.device(DEVICE), layers=2, length=CONTEXT_LENGTH, fuse=False)
    for _ in unfused.warm_up():
        pass
    unfused.begin(drawn(60), 300, 9)
    answer = unfused.advance(float("inf"))
    assert answer is not None
    assert answer.tokens == finish(single, drawn(60), 300, 9).tokens


def test_out_of_memory_is_survived(half: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def prefill(_length: int) -> None:
        torch.empty(2**45, dtype=torch.uint8, device=DEVICE)

    assert half._static is not None
    with monkeypatch.context() as patched:
        # Beyond the longest padding the prompt is read by this call, not by a graph.
        patched.setattr(half._static, "_prefill", prefill)
        half.begin(drawn(900), 100, 1)
        with pytest.raises(OutOfDeviceMemory, match="no memory left for this request"):
            half.advance(float("inf"))
    assert len(finish(half, drawn(900), 100, 1).tokens) == 100
    assert len(finish(half, drawn(60), 100, 1).tokens) == 100


async def test_poisoned_worker_is_replaced_and_the_server_passes_verification(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "WORKER_MODULE", "tests.roles.inference.faulty_worker")
    settings = local_settings(tiny_model)
    node = settings.node.model_copy(update={"device": DEVICE})
    settings = settings.model_copy(update={"node": node})
    verifier = LogitVerifier(settings, key("validator"), source=random.Random(5))
    async with running(settings, key("miner"), wait=False) as one:
        await asyncio.gather(until(lambda: is_ready(one), 240.0), verifier.start())
        axon = AxonAddress("127.0.0.1", one.server.port)
        miner = key("miner").ss58_address
        results = [await verifier.check(miner, axon) for _ in range(3)]
        old = one.server.model.pid
        reply = await one.post(prompt=[POISON, 1, 2], gen_len=4)
        assert reply.status == 503
        assert reply.detail == "the model's process ended and is being replaced: try again"
        await until(lambda: is_ready(one), 240.0)
        assert one.server.model.pid != old
        results.append(await verifier.check(miner, axon))
    await verifier.close()
    assert {result.outcome for result in results} == {LogitOutcome.PASSED}, results
