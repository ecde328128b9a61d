"""The engine measured on this machine, part by part: `python -m roles.inference.benchmark MODEL --device D`.

Prints one JSON line for each part as soon as it is done, progress on stderr. A part that fails says so in its
line and the next one begins.
"""

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch

from protocol.logits import compare_logits, encode_logits
from protocol.rules import MAX_ABS_DIFFERENCE
from roles.inference.decoding import Decoder, Generation
from roles.inference.engine import Engine
from roles.inference.graph_decoding import StaticDecoder
from roles.inference.margins import margins
from roles.inference.worker import document
from roles.validator.logit_worker import judge

PROMPT_TOKENS: Final = 128
GEN_LEN: Final = 256
STEP: Final = 50
EXACT_TOKENS: Final = 64
REPETITIONS: Final = 5
FIRST_TOKEN_REPETITIONS: Final = 20
WARM_UP_TOKENS: Final = 8
TOP_KERNELS: Final = 15
ORDINARY: Final = 256
"""Prompts are drawn from the first token ids: those of the tiny tokenizer are ordinary."""

Part = Callable[[], dict[str, Any]]


class Benchmark:
    """Engines of one model, loaded when they are first needed."""

    def __init__(self, model: str, device: str) -> None:
        self._model = model
        self._device = device
        self._half: Engine | None = None
        self._single: Engine | None = None
        self._plain: list[int] | None = None
        """The plain loop's answer to the first prompt."""

    def parts(self) -> dict[str, Part]:
        """What is measured, the most important first."""
        return {
            "machine": self.machine,
            "decode": self.decode,
            "first_token": self.first_token,
            "hand_over": self.hand_over,
            "verification": self.verification,
            "exact_in_float32": self.exact,
            "margins": self.margins,
            "decode_without_fusion": self.unfused,
            "launches": self.launches,
        }

    def machine(self) -> dict[str, Any]:
        """Device and versions."""
        import transformers

        is_gpu = self._device != "cpu"
        return {
            "device": torch.cuda.get_device_name(self._device) if is_gpu else "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": sys.version.split()[0],
        }

    @property
    def half(self) -> Engine:
        """As the miner serves it: float16 on a GPU, warmed up."""
        if self._half is None:
            self._half = Engine.load(self._model, self._device)
        return self._half

    @property
    def single(self) -> Engine:
        """As the validator reads with it: float32."""
        if self._single is None:
            self._single = Engine.load(self._model, self._device, dtype="float32")
        return self._single

    def decode(self) -> dict[str, Any]:
        """Tokens per second of the engine and of the plain transformers loop, answers compared first."""
        engine, prompt = self.half, _prompt(1)
        original_loop(engine, prompt, WARM_UP_TOKENS)
        _say("the plain transformers loop ...")
        started = time.perf_counter()
        self._plain = plain = original_loop(engine, prompt, GEN_LEN)
        plain_s = time.perf_counter() - started
        _say(f"plain loop: {GEN_LEN / plain_s:.1f} tok/s; warming up ...")
        started = time.perf_counter()
        stages = [f"{progress.stage}" for progress in engine.warm_up()]
        warm_up_s = time.perf_counter() - started
        _say(f"warm in {warm_up_s:.1f} s after {len(stages)} parts: {engine.decoding} {engine.warning or ''}")
        result = self._timed(engine, engine, prompt, plain)
        return {
            "decoding": engine.decoding,
            "warning": engine.warning,
            "warm_up_s": warm_up_s,
            "plain_loop_tokens_per_sec": GEN_LEN / plain_s,
            "ratio_to_plain_loop": result["tokens_per_sec"] * plain_s / GEN_LEN,
            **result,
        }

    def unfused(self) -> dict[str, Any]:
        """The same with the model's own steps."""
        engine, prompt = self.half, _prompt(1)
        if self._device == "cpu":
            return {"skipped": "CUDA graphs need a GPU"}
        plain = self._plain or original_loop(engine, prompt, GEN_LEN)
        layers = engine.info()["num_layers"]
        decoder = StaticDecoder(
            engine.model, torch.device(self._device), layers=layers, length=1024, fuse=False
        )
        for _ in decoder.warm_up():
            pass
        return self._timed(decoder, engine, prompt, plain)

    def _timed(self, decoder: Decoder, engine: Engine, prompt: list[int], plain: list[int]) -> dict[str, Any]:
        answer = _answer(decoder, prompt, GEN_LEN, STEP)
        agreement = _agreement(engine, prompt, plain, answer)
        again = _answer(decoder, prompt, GEN_LEN, STEP)
        seconds = [_answer(decoder, prompt, GEN_LEN, STEP).elapsed_s for _ in range(REPETITIONS)]
        first = [_answer(decoder, prompt, 1, None).elapsed_s for _ in range(REPETITIONS)]
        median_s = statistics.median(seconds)
        step_s = (median_s - statistics.median(first)) / (GEN_LEN - 1)
        return {
            "tokens_per_sec": GEN_LEN / median_s,
            "step_ms": step_s * 1e3,
            "seconds": seconds,
            "same_answer_twice": answer.tokens == again.tokens,
            **agreement,
        }

    def launches(self) -> dict[str, Any]:
        """Where the GPU's time for one further token goes: kernels by name, per token."""
        if self._device == "cpu":
            return {"skipped": "kernels are counted on a GPU"}
        one, many = (
            _kernels(lambda count=count: _answer(self.half, _prompt(1), count, None))
            for count in (1, 1 + WARM_UP_TOKENS)
        )
        kernels = []
        for name, (count, microseconds) in many.items():
            first_count, first_microseconds = one.get(name, (0, 0.0))
            launches = (count - first_count) / WARM_UP_TOKENS
            kernels.append((launches, (microseconds - first_microseconds) / WARM_UP_TOKENS, name[:100]))
        largest = sorted(kernels, key=lambda kernel: -kernel[1])[:TOP_KERNELS]
        return {
            "launches_per_token": sum(kernel[0] for kernel in kernels),
            "gpu_us_per_token": sum(kernel[1] for kernel in kernels),
            "kernels": [{"name": name, "launches": count, "us": us} for count, us, name in largest],
        }

    def first_token(self) -> dict[str, Any]:
        """Milliseconds until the first token of a prompt is known."""
        engine = self.half
        times_ms = []
        for number in range(FIRST_TOKEN_REPETITIONS):
            times_ms.append(_answer(engine, _prompt(number), 1, 1).elapsed_s * 1e3)
        return {"median_ms": statistics.median(times_ms), "largest_ms": max(times_ms)}

    def hand_over(self) -> dict[str, Any]:
        """Milliseconds from an answer's last token to what the server reads, logits included."""
        engine = self.half
        fetched_ms, written_ms = [], []
        for number in range(FIRST_TOKEN_REPETITIONS):
            engine.begin(_prompt(number), 1, 1)
            started = time.perf_counter()
            answer = engine.advance(float("inf"))
            fetched = time.perf_counter()
            assert answer is not None
            json.dumps(document(answer))
            written_ms.append((time.perf_counter() - fetched) * 1e3)
            fetched_ms.append((fetched - started - answer.elapsed_s) * 1e3)
        return {"fetched_ms": statistics.median(fetched_ms), "written_ms": statistics.median(written_ms)}

    def verification(self) -> dict[str, Any]:
        """Milliseconds of judging one miner's answer, and how much of them the GPU works."""
        prompt, tokens = _prompt(2), _prompt(3)[:EXACT_TOKENS]
        reference, rounded = self.single, self.single.in_float16()
        params = {
            "prompt": prompt,
            "tokens": tokens,
            "captured_logits": encode_logits(reference.examine(prompt, tokens, STEP).logits),
            "step": STEP,
            "tolerance": MAX_ABS_DIFFERENCE,
        }
        judge(reference, rounded, params)
        wall_ms = []
        for _ in range(FIRST_TOKEN_REPETITIONS):
            started = time.perf_counter()
            judge(reference, rounded, params)
            wall_ms.append((time.perf_counter() - started) * 1e3)
        result = {"median_ms": statistics.median(wall_ms), "largest_ms": max(wall_ms)}
        if self._device != "cpu":
            kernels = _kernels(lambda: judge(reference, rounded, params))
            result["gpu_ms"] = sum(us for _, us in kernels.values()) / 1e3
        return result

    def exact(self) -> dict[str, Any]:
        """In float32 rounding decides nothing: the graphs give the plain loop's tokens, one for one."""
        engine = self.single
        prompts = [_prompt(number) for number in (4, 5)]
        plain = [original_loop(engine, prompt, EXACT_TOKENS) for prompt in prompts]
        for _ in engine.warm_up():
            pass
        graphs = [_answer(engine, prompt, EXACT_TOKENS, STEP).tokens for prompt in prompts]
        return {
            "decoding": engine.decoding,
            "warning": engine.warning,
            "identical_tokens": plain == graphs,
            "different_tokens_in_an_answer": len(set(plain[0])),
        }

    def margins(self) -> dict[str, Any]:
        """How far honest servers and impostors are from the float32 reference, over many positions."""
        prompt = _prompt(6)
        return margins(self.single, prompt, original_loop(self.single, prompt, EXACT_TOKENS))


@torch.no_grad()
def original_loop(engine: Engine, prompt: list[int], gen_len: int) -> list[int]:
    """The loop of a transformers user: one forward call and one read of the token for each."""
    device = next(engine.model.parameters()).device
    token = torch.tensor([prompt], device=device)
    cache = None
    tokens: list[int] = []
    for _ in range(gen_len):
        output = engine.model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        token = output.logits[:, -1, :].argmax(dim=-1, keepdim=True)
        tokens.append(int(token.item()))
    return tokens


def _answer(decoder: Decoder | Engine, prompt: list[int], gen_len: int, step: int | None) -> Generation:
    decoder.begin(prompt, gen_len, step)
    answer = decoder.advance(float("inf"))
    assert answer is not None
    return answer


def _kernels(work: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """Launches and microseconds of each kernel of some work."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        work()
        torch.cuda.synchronize()
    return {event.key: (event.count, event.self_device_time_total) for event in profiled.key_averages()}


def _agreement(engine: Engine, prompt: list[int], plain: list[int], answer: Generation) -> dict[str, Any]:
    """Whether an answer is the plain loop's; if not, by how little the plain loop chose otherwise."""
    assert answer.captured_logits is not None
    own_rows = engine.read(prompt, answer.tokens)
    comparison = compare_logits(own_rows[STEP - 1], answer.captured_logits.numpy())
    pairs = zip(plain, answer.tokens, strict=True)
    index = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
    chosen = own_rows[np.arange(len(answer.tokens)), answer.tokens]
    gap = None
    if index is not None:
        gap = float(own_rows[index, plain[index]] - own_rows[index, answer.tokens[index]])
    return {
        "identical_tokens": index is None,
        "first_difference": index,
        "gap_of_the_two_tokens_there": gap,
        "largest_gap_to_the_best": float((own_rows.max(axis=1) - chosen).max()),
        "logits_max_abs_diff": comparison.max_abs_diff,
        "logits_relative_error": comparison.relative_error,
        "different_tokens": len(set(answer.tokens)),
    }


def _prompt(seed: int) -> list[int]:
    return random.Random(seed).choices(range(ORDINARY), k=PROMPT_TOKENS)


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Measure every part; 0 even when one failed, because its line says so."""
    parser = argparse.ArgumentParser(prog="python -m roles.inference.benchmark", description=__doc__)
    parser.add_argument("model", help="name or folder of a causal language model")
    parser.add_argument("--device", required=True, help="cpu or cuda:<n>")
    args = parser.parse_args(argv)
    for name, part in Benchmark(args.model, args.device).parts().items():
        _say(f"{name} ...")
        try:
            result = part()
        except Exception as error:  # noqa: BLE001 - one part must not lose the others
            result = {"error": f"{type(error).__name__}: {error}"[:1000]}
        print(json.dumps({name: result}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
