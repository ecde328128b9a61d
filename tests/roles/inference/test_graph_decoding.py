"""Decoding in buffers that never move, on the CPU: the steps that a GPU captures are called here."""

import random
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import QuasarError
from roles.inference.decoding import Generation, LogitsNotFinite, PlainDecoder
from roles.inference.engine import Engine
from roles.inference.fused_step import UnusualModel
from roles.inference.graph_decoding import StaticDecoder
from roles.inference.tiny_model import BYTE_TOKENS, CONTEXT_LENGTH, LAYERS
from roles.inference.warm_up import Progress, WarmUp

CPU = torch.device("cpu")
LENGTHS = [(1, 5), (16, 1), (40, 300), (127, 130), (128, 2), (129, 128), (250, 12), (513, 3), (1000, 24)]
"""Prompt and answer: both sides of every padding, and answers that outgrow their window once or twice."""

Answered = tuple[StaticDecoder | None, str | None]


def drawn(length: int) -> list[int]:
    return random.Random(length).choices(range(BYTE_TOKENS), k=length)


def finish(decoder: StaticDecoder | PlainDecoder, length: int, gen_len: int, step: int | None) -> Generation:
    decoder.begin(drawn(length), gen_len, step)
    answer = decoder.advance(float("inf"))
    assert answer is not None
    return answer


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine.load(str(tiny_model), "cpu")


def warmed(model: Any, *, length: int = CONTEXT_LENGTH, fuse: bool = False) -> StaticDecoder:
    made = StaticDecoder(model, CPU, layers=LAYERS, length=length, fuse=fuse)
    assert len(list(made.warm_up())) == len(made.windows()) + len(made.prefill_lengths())
    return made


@pytest.fixture(scope="module")
def decoder(engine: Engine) -> StaticDecoder:
    return warmed(engine.model)


def test_windows_and_paddings_cover_the_context(engine: Engine, decoder: StaticDecoder) -> None:
    assert decoder.windows() == [256, 512, 1024]
    assert decoder.prefill_lengths() == [128, 256, 512]
    short = StaticDecoder(engine.model, CPU, layers=LAYERS, length=100, fuse=False)
    assert short.windows() == short.prefill_lengths() == [100]


@pytest.mark.parametrize(("length", "gen_len"), LENGTHS)
def test_answers_are_the_plain_loops(
    engine: Engine, decoder: StaticDecoder, length: int, gen_len: int
) -> None:
    plain = finish(PlainDecoder(engine.model, CPU), length, gen_len, gen_len)
    static = finish(decoder, length, gen_len, gen_len)
    assert static.tokens == plain.tokens
    assert static.captured_logits is not None
    assert plain.captured_logits is not None
    torch.testing.assert_close(static.captured_logits, plain.captured_logits, atol=1e-4, rtol=0)
    assert static.elapsed_s > 0


def test_text_of_exactly_the_length_of_the_buffers(engine: Engine) -> None:
    short = warmed(engine.model, length=60)
    for length, gen_len in ((59, 1), (1, 59), (30, 30)):
        plain = finish(PlainDecoder(engine.model, CPU), length, gen_len, None)
        assert finish(short, length, gen_len, None).tokens == plain.tokens


def test_longer_and_dropped_answers_leave_no_trace(decoder: StaticDecoder) -> None:
    first = finish(decoder, 60, 40, 17)
    finish(decoder, 900, 100, 3)
    decoder.begin(drawn(200), 300, 250)
    slices = 0
    while slices < 5:
        assert decoder.advance(0.0) is None
        slices += 1
    again = finish(decoder, 60, 40, 17)
    assert again.tokens == first.tokens
    assert first.captured_logits is not None
    assert again.captured_logits is not None
    assert torch.equal(again.captured_logits, first.captured_logits)
    with pytest.raises(QuasarError, match="no answer is under way"):
        decoder.advance(1.0)


def test_slices_do_not_change_the_answer(decoder: StaticDecoder) -> None:
    whole = finish(decoder, 100, 200, 150)
    decoder.begin(drawn(100), 200, 150)
    while (answer := decoder.advance(0.0)) is None:
        pass
    assert answer.tokens == whole.tokens


def test_captured_logits_outlive_the_next_answer(decoder: StaticDecoder) -> None:
    first = finish(decoder, 60, 4, 4)
    assert first.captured_logits is not None
    kept = first.captured_logits.clone()
    finish(decoder, 61, 4, 4)
    assert torch.equal(first.captured_logits, kept)


@pytest.fixture(scope="module")
def fused(engine: Engine) -> StaticDecoder:
    made = warmed(engine.model, fuse=True)
    assert made.windows() == [CONTEXT_LENGTH]
    return made


@pytest.mark.parametrize(("length", "gen_len"), [(1, 5), (127, 4), (1000, 3)])
def test_fused_steps_give_the_plain_loops_tokens(
    engine: Engine, fused: StaticDecoder, length: int, gen_len: int
) -> None:
    plain = finish(PlainDecoder(engine.model, CPU), length, gen_len, gen_len)
    ours = finish(fused, length, gen_len, gen_len)
    assert ours.tokens == plain.tokens
    assert ours.captured_logits is not None
    assert plain.captured_logits is not None
    torch.testing.assert_close(ours.captured_logits, plain.captured_logits, atol=1e-4, rtol=0)


def test_fused_steps_in_float16_are_about_as_exact_as_the_models_own(engine: Engine) -> None:
    half = engine.in_float16().model
    exact = finish(PlainDecoder(engine.model, CPU), 40, 6, 6).captured_logits
    assert exact is not None
    errors, tokens = {}, {}
    for fuse in (False, True):
        answer = finish(warmed(half, fuse=fuse), 40, 6, 6)
        assert answer.captured_logits is not None
        errors[fuse] = float((answer.captured_logits - exact).norm())
        tokens[fuse] = answer.tokens
    assert tokens[True] == tokens[False]
    # Validators allow four times; here it is one answer of each, by chance the better or the worse.
    assert errors[True] < 2.0 * errors[False]


def unusual(model: Any, part: str) -> None:
    """Give a model something that fused steps do not do."""
    layer = model.model.layers[1]
    if part == "a norm of its queries":
        layer.self_attn.q_norm = torch.nn.Identity()
    elif part == "another activation":
        layer.mlp.act_fn = torch.nn.GELU()
    elif part == "another projection":
        layer.mlp.up_proj = torch.nn.Identity()
    elif part == "a bias":
        layer.self_attn.k_proj.bias = None
    elif part == "another norm":
        model.model.norm = torch.nn.LayerNorm(32)
    else:
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(512))


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("a norm of its queries", "has k_proj, o_proj, q_norm, q_proj, v_proj, not k_proj, o_proj"),
        ("another activation", "its activation is GELU"),
        ("another projection", "a projection is a Identity"),
        ("a bias", "some of its projections have a bias"),
        ("another norm", "LayerNorm is no RMSNorm as Llama has it"),
        ("a bias of its output", "its output layer has a bias"),
    ],
)
def test_models_with_other_layers_take_their_own_steps(tiny_model: Path, part: str, said: str) -> None:
    model = Engine.load(str(tiny_model), "cpu").model
    unusual(model, part)
    with pytest.raises(UnusualModel, match=said):
        StaticDecoder(model, CPU, layers=LAYERS, length=64, fuse=True)


# --- warm-up ------------------------------------------------------------------------------------------------


def run(work: WarmUp) -> tuple[list[Progress], Answered]:
    """Every part of a warm-up, and what it ends with."""
    parts = []
    turns: Generator[Progress, None, Answered] = work.run()
    while True:
        try:
            parts.append(next(turns))
        except StopIteration as stop:
            return parts, stop.value


def warm_up(engine: Engine) -> WarmUp:
    return WarmUp(engine.model, CPU, CONTEXT_LENGTH, engine.examine)


def test_warm_up_reports_every_part_and_ends_with_a_decoder(engine: Engine) -> None:
    parts, (decoder, warning) = run(warm_up(engine))
    assert decoder is not None
    assert warning is None
    assert [part.finished for part in parts] == list(range(len(parts)))
    assert {part.total for part in parts} == {len(parts)}
    assert parts[0].stage == "prefill of 128 tokens"
    assert parts[-1].stage == "comparison with the plain loop"
    assert decoder.least_window == 0


def test_capture_that_fails_leaves_the_plain_loop_with_a_warning(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: StaticDecoder, step: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    monkeypatch.setattr(StaticDecoder, "_captured", fail)
    _, (decoder, warning) = run(warm_up(engine))
    assert decoder is None
    assert warning == (
        "decoding without CUDA graphs: RuntimeError: operation not permitted when stream is capturing"
    )


def test_unusual_layers_cost_only_the_fusion(tiny_model: Path) -> None:
    engine = Engine.load(str(tiny_model), "cpu")
    engine.model.model.layers[0].self_attn.q_norm = torch.nn.Identity()
    parts, (decoder, warning) = run(warm_up(engine))
    assert decoder is not None
    assert warning is not None
    assert warning.startswith("decoding without fused steps: UnusualModel: Qwen2DecoderLayer has k_proj")
    assert len(parts) == len(decoder.prefill_lengths()) + len(decoder.windows()) + 1


def test_graphs_that_answer_otherwise_are_not_used(engine: Engine, other_model: Path) -> None:
    other = Engine.load(str(other_model), "cpu")
    _, (decoder, warning) = run(WarmUp(engine.model, CPU, CONTEXT_LENGTH, other.examine))
    assert decoder is None
    assert warning is not None
    assert warning.startswith(
        "decoding without CUDA graphs: Disagreement: 128 tokens in a window of 0: cosine"
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, "has layers of sliding_attention"),
        ({"layer_types": None, "sliding_window": 128}, "attends in a sliding window"),
    ],
)
def test_models_that_the_cache_does_not_fit_use_the_plain_loop(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], reason: str
) -> None:
    for name, value in config.items():
        monkeypatch.setattr(engine.model.config, name, value)
    parts, (decoder, warning) = run(warm_up(engine))
    assert (parts, decoder) == ([], None)
    assert warning is not None
    assert reason in warning


def test_engine_takes_the_plain_loop_for_texts_beyond_the_buffers(tiny_model: Path) -> None:
    engine = Engine.load(str(tiny_model), "cpu")
    assert engine.decoding == "plain loop"
    engine._static = warmed(engine.model, length=64)
    assert engine.decoding == "cuda graphs"
    for length, gen_len, decoder in (
        (60, 4, engine._static),
        (60, 5, engine._plain),
        (10, 4, engine._static),
    ):
        engine.begin(drawn(length), gen_len, None)
        assert engine._decoder is decoder
        answer = engine.advance(float("inf"))
        assert answer is not None
        assert answer.tokens == finish(PlainDecoder(engine.model, CPU), length, gen_len, None).tokens


def test_broken_weights_are_said_by_the_static_decoder_too(tiny_model: Path) -> None:
    engine = Engine.load(str(tiny_model), "cpu")
    with torch.no_grad():
        engine.model.get_output_embeddings().weight[3, 0] = float("nan")
    decoder = warmed(engine.model, length=128)
    decoder.begin(drawn(5), 2, 1)
    with pytest.raises(LogitsNotFinite, match="not finite"):
        decoder.advance(10.0)
