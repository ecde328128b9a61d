"""Greedy decoding at fixed addresses: the prefill and each step are CUDA graphs, replayed (needs torch).

A step of one token is some hundreds of launches of a few microseconds each. Launched from Python they take
twenty times longer than the GPU needs; captured once, they are one launch.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch

from protocol.errors import QuasarError
from roles.inference.decoding import TOKENS_BETWEEN_LOOKS, Generation, captured_on_cpu
from roles.inference.fused_step import FusedStep
from roles.inference.static_cache import FixedCache

SMALLEST_WINDOW: Final = 256
PREFILL_LENGTHS: Final = (128, 256, 512, 1024)
"""Prompts are padded to these; longer ones are a call from Python, whose time no longer matters there."""
WARM_UP_RUNS: Final = 2
"""Before a capture: libraries allocate and choose kernels in their first call."""

Step = Callable[[], None]


class StaticDecoder:
    """Decodes as PlainDecoder does, in buffers that never move, so that every step can be captured.

    `length` is the longest text, prompt and answer together. `warm_up` captures; on a CPU the same steps are
    simply called. The window of a step is the smallest captured one that its position fits into. Raises
    UnusualModel when it shall `fuse` and cannot.
    """

    def __init__(self, model: Any, device: torch.device, *, layers: int, length: int, fuse: bool) -> None:
        self._model = model
        self._device = device
        self.length = length
        self.least_window = 0
        """Steps take no smaller window than this; for comparisons."""
        self._cache = FixedCache(layers, length, device)
        self._fused = FusedStep(model, self._cache) if fuse else None
        long = {"dtype": torch.long, "device": device}
        self._slots = torch.arange(length, **long)
        self._prompt = torch.zeros(1, length, **long)
        self._last = torch.zeros(1, **long)
        """Index of the prompt's last token."""
        self._token = torch.zeros(1, 1, **long)
        self._position = torch.zeros(1, **long)
        """Of the token that goes in next."""
        self._text = torch.zeros(length + 1, **long)
        vocab_size = int(model.get_output_embeddings().weight.shape[0])
        self._logits = torch.zeros(vocab_size, dtype=model.dtype, device=device)
        self._pool: Any = None
        self._prefills: dict[int, Step] = {}
        self._steps: dict[int, Step] = {}
        self.drop()

    # --- capture

    def windows(self) -> list[int]:
        """Lengths that steps are captured for: powers of two, and the whole.

        Fused, they read what is there.
        """
        if self._fused is not None:
            return [self.length]
        powers = []
        window = SMALLEST_WINDOW
        while window < self.length:
            powers.append(window)
            window *= 2
        return [*powers, self.length]

    def prefill_lengths(self) -> list[int]:
        """Lengths that prompts are padded to."""
        return [length for length in PREFILL_LENGTHS if length < self.length] or [self.length]

    def warm_up(self) -> Iterator[str]:
        """Capture everything, one graph for each turn of the iterator, which says what comes next.

        Raises RuntimeError where the model or the device does not allow it.
        """
        for length in self.prefill_lengths():
            yield f"prefill of {length} tokens"
            self._prefills[length] = self._captured(lambda length=length: self._prefill(length))
        for window in self.windows():
            yield f"step in a context of {window} tokens"
            self._steps[window] = self._captured(lambda window=window: self._step(window))

    @torch.no_grad()
    def _captured(self, step: Step) -> Step:
        if self._device.type != "cuda":
            return torch.no_grad()(step)
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP_RUNS):
                self._position.zero_()
                step()
        torch.cuda.current_stream(self._device).wait_stream(side)
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        # One pool for all of them: they never run at the same time, and leave nothing in it.
        with torch.cuda.graph(graph, pool=self._pool):
            step()
        self._pool = graph.pool()
        return graph.replay

    # --- what is captured

    def _prefill(self, length: int) -> None:
        """Read the prompt, padded on the right to `length`, and choose the first token.

        Padding comes after everything that a token attends to; its slots are overwritten before any step
        reads them.
        """
        positions = self._slots[:length]
        self._cache.positions, self._cache.window = positions, None
        logits = self._forward(self._prompt[:, :length], positions, None, self._last)
        self._position.copy_(self._last)
        self._choose(logits)

    def _step(self, window: int) -> None:
        """Feed the last token and choose the next."""
        if self._fused is not None:
            self._choose(self._fused(self._token, self._position))
            return
        self._cache.positions, self._cache.window = self._position, window
        hidden = self._slots[:window] > self._position
        mask = torch.zeros(window, dtype=self._model.dtype, device=self._device)
        mask = mask.masked_fill(hidden, float("-inf"))[None, None, None]
        self._choose(self._forward(self._token, self._position, mask, 1))

    def _forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, keep: Any
    ) -> torch.Tensor:
        output = self._model(
            input_ids=tokens,
            position_ids=positions[None],
            attention_mask=mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits[0, -1]
        return logits

    def _choose(self, logits: torch.Tensor) -> None:
        self._logits.copy_(logits)
        token = logits.argmax(dim=-1, keepdim=True)
        self._position.add_(1)
        self._text.index_copy_(0, self._position, token)
        self._token.copy_(token[None])

    # --- one answer

    def drop(self) -> None:
        """Forget the answer under way."""
        self._ids: list[int] = []
        self._made = 0
        self._gen_len = 0
        self._logits_at_step: int | None = None
        self._captured_logits: torch.Tensor | None = None
        self._elapsed_s = 0.0

    def begin(self, prompt: list[int], gen_len: int, logits_at_step: int | None) -> None:
        """Take up an answer; what was under way is dropped."""
        self.drop()
        self._ids = prompt
        self._gen_len = gen_len
        self._logits_at_step = logits_at_step

    @torch.no_grad()
    def advance(self, budget_s: float) -> Generation | None:
        """Work for about `budget_s` seconds; the answer once it is finished.

        Raises QuasarError without an answer under way, LogitsNotFinite.
        """
        if not self._ids:
            raise QuasarError("no answer is under way: begin one")
        started = time.perf_counter()
        while self._made < self._gen_len:
            self._next()
            if self._made == self._gen_len or self._made % TOKENS_BETWEEN_LOOKS:
                continue
            self._wait()
            if time.perf_counter() - started >= budget_s:
                self._elapsed_s += time.perf_counter() - started
                return None
        first = len(self._ids)
        tokens: list[int] = self._text[first : first + self._gen_len].tolist()
        elapsed_s = self._elapsed_s + time.perf_counter() - started
        answer = Generation(tokens, captured_on_cpu(self._captured_logits), elapsed_s)
        self.drop()
        return answer

    def _next(self) -> None:
        if self._made == 0:
            self._read_prompt()
        else:
            position = len(self._ids) + self._made - 1
            self._steps[next(w for w in self._steps if position < w and self.least_window <= w)]()
        self._made += 1
        if self._made == self._logits_at_step:
            self._captured_logits = self._logits.to(torch.float32, copy=True)

    def _read_prompt(self) -> None:
        count = len(self._ids)
        length = next((length for length in self._prefills if count <= length), count)
        self._prompt[0, :count].copy_(torch.tensor(self._ids, dtype=torch.long))
        self._prompt[0, count:length].zero_()
        self._last.fill_(count - 1)
        if length in self._prefills:
            self._prefills[length]()
        else:
            self._prefill(length)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
