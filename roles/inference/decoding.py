"""Greedy decoding with a key-value cache, one token after the other, in slices of time (needs torch)."""

import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch

from protocol.errors import QuasarError

TOKENS_BETWEEN_LOOKS: Final = 16
"""On a GPU the clock means nothing before a synchronisation, and each one costs time."""


class LogitsNotFinite(QuasarError):
    """The model computes NaN or infinity."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A finished answer: `tokens` of length `gen_len`, captured logits `[V]` in float32 on the CPU."""

    tokens: list[int]
    captured_logits: torch.Tensor | None
    elapsed_s: float


class Decoder(Protocol):
    """A way to decode: the plain loop, or one that replays a captured graph."""

    def begin(self, prompt: list[int], gen_len: int, logits_at_step: int | None) -> None:
        """Take up an answer; what was under way is dropped."""

    def advance(self, budget_s: float) -> Generation | None:
        """Work for about `budget_s` seconds; the answer once it is finished."""

    def drop(self) -> None:
        """Forget the answer under way."""


class PlainDecoder:
    """The loop as everybody writes it: one forward call of the model for each token.

    Token k is the first largest logit; the distribution it was taken from is captured when k is the step
    asked for (1-indexed). No token ends the answer early.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        self._model = model
        self._device = device
        self.drop()

    def drop(self) -> None:
        """Forget the answer under way."""
        self._cache: Any = None
        self._next_input: torch.Tensor | None = None
        self._tokens: list[torch.Tensor] = []
        self._captured: torch.Tensor | None = None
        self._gen_len = 0
        self._logits_at_step: int | None = None
        self._elapsed_s = 0.0

    def begin(self, prompt: list[int], gen_len: int, logits_at_step: int | None) -> None:
        """Take up an answer; what was under way is dropped."""
        self.drop()
        self._next_input = torch.tensor([prompt], dtype=torch.long, device=self._device)
        self._gen_len = gen_len
        self._logits_at_step = logits_at_step

    @torch.inference_mode()
    def advance(self, budget_s: float) -> Generation | None:
        """Work for about `budget_s` seconds; the answer once it is finished.

        Raises QuasarError without an answer under way, LogitsNotFinite.
        """
        if self._next_input is None:
            raise QuasarError("no answer is under way: begin one")
        started = time.perf_counter()
        while len(self._tokens) < self._gen_len:
            self._step()
            if self._looks_at_clock() and time.perf_counter() - started >= budget_s:
                break
        done = len(self._tokens) >= self._gen_len
        tokens = torch.cat(self._tokens).tolist() if done else []
        self._elapsed_s += time.perf_counter() - started
        if not done:
            return None
        answer = Generation(tokens, captured_on_cpu(self._captured), self._elapsed_s)
        self.drop()
        return answer

    def _step(self) -> None:
        output = self._model(
            input_ids=self._next_input, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = output.past_key_values
        logits = output.logits[0, -1]
        token = logits.argmax(dim=-1, keepdim=True)
        self._tokens.append(token)
        if len(self._tokens) == self._logits_at_step:
            self._captured = logits.float()
        self._next_input = token[None]

    def _looks_at_clock(self) -> bool:
        if self._device.type == "cpu":
            return True
        if len(self._tokens) % TOKENS_BETWEEN_LOOKS and len(self._tokens) != 1:
            return False
        torch.cuda.synchronize(self._device)
        return True


def captured_on_cpu(logits: torch.Tensor | None) -> torch.Tensor | None:
    """Captured logits where they can be sent from; raises LogitsNotFinite."""
    if logits is None:
        return None
    captured = logits.cpu()
    # By NumPy: PyTorch would wake a thread for each core for it.
    if not np.isfinite(captured.numpy()).all():
        raise LogitsNotFinite("the model's logits are not finite: its weights or its dtype are broken")
    return captured
