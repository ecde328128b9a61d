"""The model itself: exact greedy tokens, the right distribution, slices that change nothing."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from protocol.errors import ConfigError, QuasarError
from roles.inference.decoding import Generation, LogitsNotFinite
from roles.inference.engine import Engine
from roles.inference.tiny_model import (
    BYTE_TOKENS,
    CONTEXT_LENGTH,
    SPECIAL_TOKENS,
    VOCAB_SIZE,
    write_tiny_model,
)

PROMPT = random.Random(7).choices(range(BYTE_TOKENS), k=40)


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.load(str(tiny_model), "cpu")


def finish(engine: Engine, prompt: list[int], gen_len: int, step: int | None = None) -> Generation:
    engine.begin(prompt, gen_len, step)
    answer = engine.advance(60.0)
    assert answer is not None
    return answer


def test_tokens_are_those_of_recomputing_everything_each_time(engine: Engine) -> None:
    text = list(PROMPT)
    expected = []
    with torch.inference_mode():
        for _ in range(20):
            logits = engine._model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            expected.append(int(logits.argmax()))
            text.append(expected[-1])
    answer = finish(engine, PROMPT, 20)
    assert answer.tokens == expected
    assert answer.captured_logits is None
    assert answer.elapsed_s > 0
    assert len(set(expected)) > 5, "a model that repeats itself would test little"


@pytest.mark.parametrize("step", [1, 2, 20])
def test_step_is_counted_from_one(engine: Engine, step: int) -> None:
    answer = finish(engine, PROMPT, 20, step)
    rows = engine.read(PROMPT, answer.tokens)
    assert rows.shape == (20, VOCAB_SIZE)
    assert rows.dtype == np.float32
    assert answer.captured_logits is not None
    np.testing.assert_allclose(answer.captured_logits.numpy(), rows[step - 1], atol=1e-4)
    assert int(answer.captured_logits.argmax()) == answer.tokens[step - 1]
    assert np.abs(rows[step - 1] - rows[step % 20]).max() > 0.1


def test_slices_do_not_change_the_answer(engine: Engine) -> None:
    whole = finish(engine, PROMPT, 30, 9)
    engine.begin(PROMPT, 30, 9)
    slices = 0
    while (answer := engine.advance(0.0)) is None:
        slices += 1
    assert slices == 29
    assert answer.tokens == whole.tokens
    assert answer.captured_logits is not None
    assert whole.captured_logits is not None
    assert torch.equal(answer.captured_logits, whole.captured_logits)


def test_answer_that_was_dropped_leaves_no_trace(engine: Engine) -> None:
    whole = finish(engine, PROMPT, 10, 3)
    engine.begin(PROMPT[::-1], 50, 50)
    assert engine.advance(0.0) is None
    again = finish(engine, PROMPT, 10, 3)
    assert again.tokens == whole.tokens
    with pytest.raises(QuasarError, match="no answer is under way"):
        engine.advance(1.0)


@pytest.mark.parametrize(
    ("prompt", "gen_len", "sentence"),
    [
        ([1, -1], 1, "token -1 is outside the vocabulary 0..511"),
        ([VOCAB_SIZE], 1, "token 512 is outside"),
        ([], 1, "is outside the vocabulary"),
        ([1] * 1000, 25, "1025 tokens exceed the context of 1024"),
    ],
)
def test_bad_tokens_never_reach_the_model(
    engine: Engine, prompt: list[int], gen_len: int, sentence: str
) -> None:
    with pytest.raises(QuasarError, match=sentence):
        engine.begin(prompt, gen_len, None)
    with pytest.raises(QuasarError):
        engine.read([5], [VOCAB_SIZE])


def test_context_can_be_filled(engine: Engine) -> None:
    assert len(finish(engine, [1] * (CONTEXT_LENGTH - 3), 3, 3).tokens) == 3


def test_info_and_vocabulary(engine: Engine, tiny_model: Path) -> None:
    assert engine.info() == {
        "model_name": str(tiny_model),
        "vocab_size": VOCAB_SIZE,
        "dtype": "float32",
        "device": "cpu",
        "num_layers": 2,
        "hidden_size": 32,
        "context_length": CONTEXT_LENGTH,
    }
    assert engine.ordinary_tokens() == list(range(BYTE_TOKENS))
    assert len(SPECIAL_TOKENS) + BYTE_TOKENS < VOCAB_SIZE


def test_broken_weights_are_said_and_not_sent(tiny_model: Path) -> None:
    engine = Engine.load(str(tiny_model), "cpu")
    with torch.no_grad():
        engine._model.get_output_embeddings().weight[3, 0] = float("nan")
    engine.begin(PROMPT, 2, 1)
    with pytest.raises(LogitsNotFinite, match="not finite"):
        engine.advance(10.0)


def test_missing_models_are_explained(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Engine.load(str(tmp_path), "cpu")
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Engine.load(str(tmp_path), "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="torch sees no CUDA GPU"):
            Engine.load(str(tiny_model), "cuda:0")


def test_seed_decides_every_byte(tmp_path: Path, tiny_model: Path, other_model: Path) -> None:
    write_tiny_model(tmp_path, 0)
    for name in ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (tiny_model / name).read_bytes(), name
    weights = "model.safetensors"
    assert (other_model / weights).read_bytes() != (tiny_model / weights).read_bytes()


def test_logits_have_a_spread_that_the_limits_mean_something_for(engine: Engine) -> None:
    rows = engine.read(PROMPT, finish(engine, PROMPT, 30).tokens)
    assert 1.0 < rows.std() < 3.0


def test_transformers_does_not_take_our_kernels_for_its_own() -> None:
    from transformers.utils import is_kernels_available

    import kernels

    assert (Path(kernels.__file__).parent / "chunk.py").is_file()
    assert not is_kernels_available()
