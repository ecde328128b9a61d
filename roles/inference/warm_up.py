"""From a loaded model to captured graphs that answer as the plain loop does, or the reason why not."""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final

import torch

from protocol.logits import compare_logits, first_wrong, logits_match
from protocol.rules import MAX_ABS_DIFFERENCE
from roles.inference.engine import Examination
from roles.inference.graph_decoding import StaticDecoder

CACHE_SHARE: Final = 1 / 8
"""Of the free memory that the cache may take; a shorter one leaves longer texts to the plain loop."""
PROBE_TOKENS: Final = 4
"""Generated for each comparison with the plain loop."""
SHORT_PROMPT: Final = 16
MAX_REASON_CHARS: Final = 300

Examine = Callable[[list[int], list[int], int], Examination]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a warm-up is, and what comes next."""

    finished: int
    total: int
    stage: str


class Disagreement(RuntimeError):
    """A captured graph does not answer as the plain loop does."""


class WarmUp:
    """Captures and compares; `examine` asks the plain model about a prompt and its answer."""

    def __init__(self, model: Any, device: torch.device, context_length: int, examine: Examine) -> None:
        self._model = model
        self._device = device
        self._context_length = context_length
        self._examine = examine
        self._total = 1

    def run(self) -> Generator[Progress, None, tuple[StaticDecoder | None, str | None]]:
        """Work part by part; returns the decoder, or None with the reason.

        A device that an error has left unusable is not survived: the process must be replaced.
        """
        reason = _obstacle(self._model.config.get_text_config())
        if reason is not None:
            return None, f"decoding by the plain loop: {reason}"
        warning = None
        for fuse in (True, False):
            try:
                return (yield from self._open(fuse)), warning
            except Exception as error:  # noqa: BLE001 - compilers and drivers raise what they like
                first = (str(error).strip() or type(error).__name__).splitlines()[0][:MAX_REASON_CHARS]
                what = "fused steps" if fuse else "CUDA graphs"
                warning = f"decoding without {what}: {type(error).__name__}: {first}"
            self._require_usable_device()
        return None, warning

    def _open(self, fuse: bool) -> Generator[Progress, None, StaticDecoder]:
        config = self._model.config.get_text_config()
        decoder = StaticDecoder(
            self._model,
            self._device,
            layers=config.num_hidden_layers,
            length=self._length(config),
            fuse=fuse,
        )
        self._total = len(decoder.prefill_lengths()) + len(decoder.windows()) + 1
        finished = 0
        for stage in decoder.warm_up():
            yield Progress(finished, self._total, stage)
            finished += 1
        yield Progress(finished, self._total, "comparison with the plain loop")
        self._compare(decoder)
        return decoder

    def _length(self, config: Any) -> int:
        """The context, or as much of it as the cache's share of the free memory holds."""
        if self._device.type != "cuda":
            return self._context_length
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token_bytes = 2 * config.num_hidden_layers * heads * dim * self._model.dtype.itemsize
        free_bytes, _ = torch.cuda.mem_get_info(self._device)
        length = self._context_length
        while length > SHORT_PROMPT and length * token_bytes > free_bytes * CACHE_SHARE:
            length //= 2
        return length

    def _compare(self, decoder: StaticDecoder) -> None:
        """Ask every graph and judge the answers as a validator would. Raises Disagreement."""
        room = decoder.length - PROBE_TOKENS
        for length in decoder.prefill_lengths():
            self._probe(decoder, min(length, room), 0)
        for window in decoder.windows():
            self._probe(decoder, min(SHORT_PROMPT, room), window)

    def _probe(self, decoder: StaticDecoder, prompt_length: int, window: int) -> None:
        vocab_size = int(self._model.get_output_embeddings().weight.shape[0])
        prompt = random.Random(prompt_length).choices(range(vocab_size), k=prompt_length)
        decoder.least_window = window
        decoder.begin(prompt, PROBE_TOKENS, PROBE_TOKENS)
        answer = decoder.advance(float("inf"))
        decoder.least_window = 0
        assert answer is not None
        assert answer.captured_logits is not None
        plain = self._examine(prompt, answer.tokens, PROBE_TOKENS)
        comparison = compare_logits(plain.logits, answer.captured_logits.numpy())
        wrong = first_wrong(plain.gaps, MAX_ABS_DIFFERENCE)
        if wrong is not None or not logits_match(comparison):
            raise Disagreement(
                f"{prompt_length} tokens in a window of {window}: cosine similarity "
                f"{comparison.cosine_similarity:.6f}, largest difference {comparison.max_abs_diff:.6f}"
            )

    def _require_usable_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.empty_cache()


def _obstacle(config: Any) -> str | None:
    """What a model has that the cache at fixed addresses does not keep."""
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        return f"the model has layers of {', '.join(sorted(kinds))}"
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None):
        return "the model attends in a sliding window"
    return None
